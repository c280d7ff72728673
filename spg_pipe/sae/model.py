"""The TopK sparse autoencoder: one readable forward pass, its losses, save and load."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.artifacts import fresh_folder, read_json, write_json
from spg_pipe.errors import SpgError
from spg_pipe.sae import ops
from spg_pipe.tensors import load_tensors, save_tensors

ACTIVE_ABOVE = 1e-3
"""A latent counts as active in a step if any token has z above this (docs/method.md §2)."""


class SaeOutput(NamedTuple):
    """What a forward pass gives for n tokens."""

    values: Tensor
    """(n, k) codes, clamped at 0."""
    indices: Tensor
    """(n, k) latents of `values`."""
    x_hat: Tensor
    """(n, D) reconstruction."""
    pre: Tensor
    """(n, C) pre-activations, without gradient."""


class SaeLosses(NamedTuple):
    """Means over the batch's tokens."""

    total: Tensor
    reconstruction: Tensor
    """mean over tokens and D of (x̂ − x)²."""
    auxk: Tensor
    """mean over tokens and D of (e − ê)², before its coefficient."""


class SparseAutoencoder(torch.nn.Module):
    """Encoder `pre = W_e x` without biases, TopK, dictionary `A` with unit rows.

    Parameters
    ----------
    dim : int
        Token width D.
    dict_size : int
        Number of latents C.
    k : int
        Active latents a token.
    seed : int
        Seed of the initial dictionary: A ~ N(0, 1/C), rows normalised, W_e = A.
    """

    def __init__(self, dim: int, dict_size: int, k: int, seed: int = 111) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(dict_size, dim, generator=generator) / dict_size**0.5
        rows = normalised_rows(rows)
        self.k = k
        self.encoder = torch.nn.Parameter(rows.clone())
        self.dictionary = torch.nn.Parameter(rows)

    @property
    def atoms(self) -> Tensor:
        """The dictionary (C, D) with rows A/(‖A‖ + 1e-8), as decoding uses it."""
        return normalised_rows(self.dictionary)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sparse codes of tokens x (n, D): values ≥ 0 (n, k), indices (n, k), pre (n, C)."""
        with torch.no_grad():
            pre = x @ self.encoder.t()
            chosen, indices = ops.select_topk(pre, self.k)
        return ops.latent_values(x, self.encoder, chosen, indices).clamp_min(0), indices, pre

    def forward(self, x: Tensor) -> SaeOutput:
        """Encode and decode tokens x (n, D) float32."""
        values, indices, pre = self.encode(x)
        return SaeOutput(values, indices, ops.decode(values, indices, self.atoms), pre)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Make the dictionary's rows unit length in place; the optimiser's state is left alone."""
        self.dictionary.div_(self.dictionary.norm(dim=1, keepdim=True).clamp_min(1e-8))


def normalised_rows(rows: Tensor) -> Tensor:
    """rows/(‖rows‖ + 1e-8), (C, D)."""
    return rows / (rows.norm(dim=1, keepdim=True) + 1e-8)


def auxk_loss(sae: SparseAutoencoder, x: Tensor, x_hat: Tensor, dead: Tensor, auxk: int) -> Tensor:
    """How badly dead latents explain what is left over, for each token.

    The top `auxk` of `pre · dead` are decoded and compared with the residual e = x − x̂.

    Parameters
    ----------
    x, x_hat : (n, D)
    dead : (C,) bool
    auxk : int
        512 as published.

    Returns
    -------
    (n,) mean over D of (e − ê)², NaN and infinities as 0
    """
    residual = x - x_hat.detach()
    if ops.is_small(x, len(dead)):
        pre, atoms = (x @ sae.encoder.t()) * dead, sae.atoms  # the published products, to the bit
    else:
        # Alive latents enter with value 0 and no gradient, so only dead columns are computed.
        pre, atoms = x @ sae.encoder[dead].t(), sae.atoms[dead]
    if auxk < pre.shape[1]:
        chosen, indices = pre.topk(auxk, dim=1, sorted=False)
        z = torch.zeros_like(pre).scatter(1, indices, chosen.clamp_min(0))
    else:
        z = pre.clamp_min(0)
    error = (residual - z @ atoms).pow(2).mean(dim=1)
    return torch.nan_to_num(error, nan=0.0, posinf=0.0, neginf=0.0)


def losses(
    sae: SparseAutoencoder,
    x: Tensor,
    output: SaeOutput,
    dead: Tensor,
    *,
    auxk: int = 512,
    auxk_coef: float = 1 / 32,
    auxk_normalised: bool = False,
) -> SaeLosses:
    """Reconstruction and AuxK losses of one batch (docs/method.md §2).

    Parameters
    ----------
    x : (n, D)
    output : SaeOutput
        `sae(x)`.
    dead : (C,) bool
        Latents that count as dead after this batch's update of the counters.
    auxk_normalised : bool
        Divide AuxK by the residual's variance (not in the published code).
    """
    reconstruction = (output.x_hat - x).pow(2).mean(dim=1).mean()
    auxk_mean = reconstruction.new_zeros(())
    if auxk > 0 and auxk_coef > 0 and bool(dead.any()):
        auxk_mean = auxk_loss(sae, x, output.x_hat, dead, auxk).mean()
        if auxk_normalised:
            auxk_mean = auxk_mean / (x - output.x_hat).detach().var().clamp_min(1e-12)
    return SaeLosses(reconstruction + auxk_coef * auxk_mean, reconstruction, auxk_mean)


@dataclass
class DeadCounter:
    """Age of every latent since it was last active.

    `rule` "tokens": the age grows by the batch's tokens and is compared with `dead_after`.
    `rule` "steps" (protocol spg): it grows by 1 and is compared with
    max(1, ⌊dead_after / tokens in the batch⌋).
    """

    age: Tensor
    """(C,) int64."""
    rule: str
    dead_after: int

    def update(self, values: Tensor, indices: Tensor) -> Tensor:
        """Count one batch of codes (n, k) and return who is dead now, (C,) bool."""
        active = torch.zeros_like(self.age, dtype=torch.bool)
        active[indices[values > ACTIVE_ABOVE]] = True
        tokens = values.shape[0]
        growth, limit = tokens, self.dead_after
        if self.rule == "steps":
            growth, limit = 1, max(1, self.dead_after // tokens)
        self.age = torch.where(active, 0, self.age) + growth
        return self.age > limit


@dataclass(frozen=True)
class SaeRun:
    """A finished stage: one SAE a layer, with dead masks and what they came from."""

    layers: dict[str, SparseAutoencoder]
    dead: dict[str, Tensor]
    """Layer → (C,) bool."""
    config: dict[str, Any]

    def save(self, path: Path, quality: dict[str, Any], curve: str) -> None:
        """Write sae.safetensors, config.json, quality.json and curve.csv as one folder."""
        tensors: dict[str, Tensor] = {}
        for layer, sae in self.layers.items():
            tensors[f"{layer}.encoder"] = sae.encoder
            tensors[f"{layer}.dictionary"] = sae.dictionary
            tensors[f"{layer}.dead"] = self.dead[layer].to(torch.uint8)
        with fresh_folder(path) as folder:
            sha256 = save_tensors(folder / "sae.safetensors", tensors)
            write_json(folder / "config.json", self.config | {"tensors_sha256": sha256})
            write_json(folder / "quality.json", quality)
            (folder / "curve.csv").write_text(curve)

    @classmethod
    def load(cls, path: Path) -> "SaeRun":
        """Read a stage's folder.

        Raises
        ------
        SpgError
            If it is missing or damaged.
        """
        config = read_json(path / "config.json", "Sparse autoencoder")
        try:
            tensors = load_tensors(
                path / "sae.safetensors",
                config.pop("tensors_sha256"),
                "sparse autoencoder",
                "spg-pipe train-sae",
            )
            layers, dead = {}, {}
            for layer in config["layers"]:
                encoder = tensors[f"{layer}.encoder"]
                sae = SparseAutoencoder(encoder.shape[1], encoder.shape[0], config["sae"]["k"])
                sae.encoder.data = encoder
                sae.dictionary.data = tensors[f"{layer}.dictionary"]
                layers[layer], dead[layer] = sae, tensors[f"{layer}.dead"].bool()
        except KeyError as error:
            raise SpgError(
                f"{path} is not a whole sparse autoencoder of this version ({error} is missing). "
                "Train it again with `spg-pipe train-sae`."
            ) from error
        return cls(layers, dead, config)


def input_tokens(x: Tensor, norm: str) -> Tensor:
    """Tokens as the SAE sees them: raw as published, or with unit length (`l2`)."""
    return F.normalize(x, dim=1) if norm == "l2" else x

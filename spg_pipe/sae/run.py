"""The artefact of stage 1: the SAEs of every layer with what they came from, and its files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spg_pipe.artefacts.digests import read_config
from spg_pipe.artefacts.files import fresh_folder, write_json
from spg_pipe.artefacts.tensors import load_tensors, save_tensors
from spg_pipe.errors import SpgError
from spg_pipe.sae.model import SparseAutoencoder


@dataclass(frozen=True)
class SaeRun:
    """A finished stage: one SAE a layer, with dead masks and what they came from."""

    layers: dict[str, SparseAutoencoder]
    dead: dict[str, Tensor]
    """Layer → (C,) bool."""
    config: dict[str, Any]

    def digest(self) -> str:
        """SHA-256 of the dictionaries and dead masks: all that guides are made with."""
        found = hashlib.sha256()
        for layer, sae in self.layers.items():
            for tensor in (sae.dictionary.detach(), self.dead[layer].byte()):
                found.update(f"{layer} {tuple(tensor.shape)}".encode())
                found.update(tensor.cpu().contiguous().numpy().data)
        return found.hexdigest()

    def save(self, path: Path, quality: dict[str, Any], curve: str) -> None:
        """Write sae.safetensors, config.json, quality.json and curve.csv as one folder."""
        tensors: dict[str, Tensor] = {}
        for layer, sae in self.layers.items():
            for name, value in sae.state_dict().items():
                tensors[f"{layer}.{name}"] = value
            tensors[f"{layer}.dead"] = self.dead[layer].byte()
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
        config = read_config(path, "sparse autoencoder", "spg-pipe train-sae")
        try:
            tensors = load_tensors(
                path / "sae.safetensors",
                config.pop("tensors_sha256"),
                "sparse autoencoder",
                "spg-pipe train-sae",
            )
            layers, dead = {}, {}
            for layer in config["layers"]:
                prefix = f"{layer}."
                own = {
                    name.removeprefix(prefix): value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                }
                dead[layer] = own.pop("dead").bool()
                layers[layer] = _rebuilt(own, config["sae"])
        except (KeyError, RuntimeError) as error:
            raise SpgError(
                f"{path} is not a whole sparse autoencoder of this version ({error} is missing). "
                "Train it again with `spg-pipe train-sae`."
            ) from error
        return cls(layers, dead, config)


def _rebuilt(weights: dict[str, Tensor], params: dict[str, Any]) -> SparseAutoencoder:
    latents, dim = weights["encoder"].shape
    sae = SparseAutoencoder(dim, latents, params["k"], activation=params["activation"])
    sae.load_state_dict(weights)
    return sae

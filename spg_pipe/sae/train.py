"""Fit one sparse autoencoder a layer on a store's patch tokens."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artifacts import fingerprint, versions
from spg_pipe.errors import SpgError
from spg_pipe.params import MethodParams, SaeParams
from spg_pipe.protocol import protocol
from spg_pipe.sae.model import (
    DeadCounter,
    SaeLosses,
    SaeRun,
    SparseAutoencoder,
    input_tokens,
    losses,
)
from spg_pipe.sae.quality import measure
from spg_pipe.store.mixing import mixing
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import token_batches

BETAS = (0.5, 0.999)
"""Adam's betas in both stages (docs/method.md §2, §3)."""
_CURVE_POINTS = 400

Progress = Callable[[str, int, int, float], None]
"""layer, tokens done, tokens in all, loss."""


@dataclass
class SaeTrainer:
    """One SAE with its optimiser and dead-latent counter."""

    sae: SparseAutoencoder
    optimizer: torch.optim.Optimizer
    counter: DeadCounter
    params: SaeParams

    @classmethod
    def start(cls, sae: SparseAutoencoder, params: SaeParams, dead_rule: str) -> "SaeTrainer":
        """A trainer at step 0."""
        age = torch.zeros(sae.dictionary.shape[0], dtype=torch.int64, device=sae.encoder.device)
        optimizer = torch.optim.Adam(sae.parameters(), lr=params.lr, betas=BETAS, fused=True)
        return cls(sae, optimizer, DeadCounter(age, dead_rule, params.dead_after_tokens), params)

    def losses(self, x: Tensor) -> tuple[SaeLosses, Tensor]:
        """Forward pass and losses of tokens x (n, D); counts activity. Also the dead mask (C,)."""
        output = self.sae(x)
        dead = self.counter.update(output.values.detach(), output.indices)
        result = losses(
            self.sae,
            x,
            output,
            dead,
            auxk=min(self.params.auxk, self.sae.dictionary.shape[0]),
            auxk_coef=self.params.auxk_coef,
            auxk_normalised=self.params.auxk_normalised,
        )
        return result, dead

    def step(self, x: Tensor) -> tuple[SaeLosses, Tensor]:
        """One Adam step on tokens x (n, D), then unit dictionary rows again."""
        result, dead = self.losses(x)
        self.optimizer.zero_grad(set_to_none=True)
        result.total.backward()
        self.optimizer.step()
        self.sae.renormalise()
        return result, dead


def train_sae(
    store: FeatureStore,
    params: SaeParams,
    method: MethodParams,
    *,
    seed: int,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
) -> tuple[SaeRun, dict[str, Any], str]:
    """Train an SAE for every layer of a store.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary dataset.
    seed : int
        Seeds the dictionaries and the order of the batches.
    cache : "auto" | "device" | "host" | "none"
        Where the tokens wait, see `TokenSource`; does not change the result.

    Returns
    -------
    run : SaeRun
    quality : dict
        Per layer: R², FVU, L0, dead share, tokens seen, epochs, protocol, and how near its batches
        came to a shuffle of all tokens (quality.json).
    curve : str
        CSV: layer, step, tokens, reconstruction, auxk, dead share.

    Raises
    ------
    SpgError
        If a loss is not finite.
    """
    settings = protocol(method.protocol)
    layers: dict[str, SparseAutoencoder] = {}
    dead: dict[str, Tensor] = {}
    quality: dict[str, dict[str, Any]] = {}
    curve = io.StringIO()
    curve.write("layer,step,tokens,reconstruction,auxk,dead_share\n")
    for layer, shape in store.spec.layers.items():
        sae = SparseAutoencoder(shape.dim, params.dict_size, params.k, seed).to(device)
        trainer = SaeTrainer.start(sae, params, settings.dead_counter)
        source = TokenSource(store, layer, device=device, cache=cache)
        seen = _fit(trainer, source, seed, curve, progress)
        measured = measure(sae, source, params, settings.dead_mask_counts_cls)
        if not np.isfinite(measured.r2) or bool(measured.dead.all()):
            raise SpgError(
                f"Layer {layer}: training went wrong (R² {measured.r2:.3g}, "
                f"{float(measured.dead.float().mean()):.0%} of the latents dead). Lower sae.lr."
            )
        layers[layer], dead[layer] = sae.cpu(), measured.dead
        quality[layer] = measured.summary() | seen | {"protocol": settings.name}
        quality[layer]["mixing"] = _mixing(store, layer, params, seed)
    return (
        SaeRun(layers, dead, _config(store, params, settings.to_dict(), seed, quality)),
        quality,
        curve.getvalue(),
    )


def _fit(
    trainer: SaeTrainer,
    source: TokenSource,
    seed: int,
    curve: io.StringIO,
    progress: Progress | None,
) -> dict[str, float]:
    layer, epoch_tokens = source.layer, len(source.store) * source.patches
    budget = trainer.params.tokens or trainer.params.epochs * epoch_tokens
    every = max(1, budget // _CURVE_POINTS)
    seen, step, next_point = 0, 0, 0
    for x in _budgeted(_epochs(trainer.params, source, seed), budget):
        tokens = input_tokens(x.float(), trainer.params.input_norm)
        result, dead = trainer.step(tokens)
        seen, step = seen + len(x), step + 1
        if seen >= min(next_point, budget):
            next_point = seen + every
            loss, auxk = result.reconstruction.item(), result.auxk.item()
            if not np.isfinite(loss + auxk):
                raise SpgError(
                    f"Layer {layer}: the loss is {loss} after {step} steps. "
                    "Lower sae.lr, or check the tokens with `spg-pipe inspect STORE`."
                )
            share = float(dead.float().mean())
            curve.write(f"{layer},{step},{seen},{loss:.8g},{auxk:.8g},{share:.6g}\n")
            if progress:
                progress(layer, seen, budget, loss)
    return {"tokens_seen": seen, "steps": step, "epochs": seen / epoch_tokens}


def _mixing(store: FeatureStore, layer: str, params: SaeParams, seed: int) -> dict[str, float]:
    return mixing(
        store.array("category"),
        store.spec.layers[layer].patches,
        batch_tokens=params.batch_tokens,
        batch_images=params.batch_images,
        window_images=params.window_images,
        run_images=params.run_images,
        seed=seed,
    ).to_dict()


def _epochs(params: SaeParams, source: TokenSource, seed: int) -> Iterator[Tensor]:
    epoch = 0
    while True:
        yield from token_batches(
            source,
            seed=seed,
            epoch=epoch,
            batch_images=params.batch_images,
            batch_tokens=params.batch_tokens,
            window_images=params.window_images,
            run_images=params.run_images,
        )
        epoch += 1


def _budgeted(batches: Iterator[Tensor], budget: int) -> Iterator[Tensor]:
    """Batches until `budget` tokens were given; whole epochs end exactly there."""
    given = 0
    for batch in batches:
        yield batch
        given += len(batch)
        if given >= budget:
            return


def _config(
    store: FeatureStore,
    params: SaeParams,
    protocol_settings: dict[str, object],
    seed: int,
    quality: dict[str, Any],
) -> dict[str, Any]:
    content = {
        "kind": "sparse autoencoder",
        "format": 1,
        "layers": list(store.layers),
        "seed": seed,
        "sae": params.model_dump(mode="json"),
        "protocol": protocol_settings,
        "inputs": {"store": store.fingerprint},
        "dataset": store.spec.dataset,
        "split": store.spec.split,
        "images": len(store),
        "tokens_seen": {layer: quality[layer]["tokens_seen"] for layer in store.layers},
        "backbone": store.spec.backbone.to_dict(),
        "licences": list(store.licences),
    }
    return content | {"fingerprint": fingerprint(content), "versions": versions()}

"""Fit sparse autoencoders on a store's patch tokens, one a layer.

A run that is given a place for checkpoints goes on after a kill with the bits of an unbroken one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from spg_pipe.artefacts.checkpoint import Checkpoints, Saved, below
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import MethodParams, SaeParams
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.model import SparseAutoencoder, sae_input
from spg_pipe.sae.quality import measure
from spg_pipe.sae.run import LayerQuality, SaeQuality, SaeRecord, SaeRun
from spg_pipe.sae.trainer import SaeTrainer, StepConstants
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import token_batches

CONSTANTS = StepConstants()

CURVE = ("layer", "step", "tokens", "reconstruction", "auxk", "dead_share")
"""Columns of curve.csv."""
_CURVE_POINTS = 400
_ADVICE = "Check the tokens with `spg-pipe inspect STORE`, or try sae.input_norm: l2."
_MANY_DEAD = 0.5
"""Share of dead latents that is worth a message."""


class DivergedError(SpgError):
    """A run that went wrong, and would again from its checkpoint."""


@dataclass(frozen=True)
class Callbacks:
    """How a person who waits is told."""

    progress: Callable[[str, int, int, float | None], None] = lambda layer, done, total, loss: None
    """layer, tokens done, tokens in all, loss; then "LAYER measured", no loss."""
    say: Callable[[str], None] = lambda message: None
    """A layer's latents are mostly dead."""
    point: Callable[[Mapping[str, str]], None] = lambda row: None
    """A row of the curve, as it is made; a run that goes on begins with those it had."""


class SaeResult(NamedTuple):
    """What training makes."""

    run: SaeRun
    quality: SaeQuality
    curve: str
    """CSV: layer, step, tokens, reconstruction, auxk, dead share."""


def train_sae(
    store: FeatureStore,
    params: SaeParams,
    method: MethodParams,
    *,
    seed: int,
    device: str = "cpu",
    cache: str = "auto",
    checkpoints: Checkpoints | None = None,
    callbacks: Callbacks = Callbacks(),
) -> SaeResult:
    """Train an SAE for every layer of a store.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary dataset.
    seed : int
        Of the dictionaries and of the batches' order.
    cache : "auto" | "device" | "host" | "none"
        Where the tokens wait, see `TokenSource`; does not change the result.
    checkpoints : Checkpoints, optional
        Where the run keeps its state, and goes on from it. The caller removes it when the
        artefact is in its place.

    Raises
    ------
    DivergedError
        If a loss is not finite, or every latent of an SAE is dead.
    SpgError
        If the store holds tiles.
    """
    _require_single_views(store)
    rules = protocol(method.protocol)
    fits = {
        layer: Fit(store, layer, params, seed, rules.dead_counter, device) for layer in store.layers
    }
    run = fingerprint([store.fingerprint, params.model_dump(mode="json"), seed, rules.name])
    if checkpoints and (saved := checkpoints.load(run)):
        _restore(fits, saved, callbacks)
    judged: dict[str, tuple[Tensor, LayerQuality]] = {}
    for layer, fit in fits.items():
        source = TokenSource(store, layer, device=device, cache=cache)
        for x in batches(fit, source) if not fit.done else ():
            fit.take(x.float(), callbacks)
            if fit.done:
                break
            if checkpoints and checkpoints.due():
                checkpoints.save(run, *_state(fits))
        judged[layer] = _judged(fit, source, rules.dead_mask_counts_cls, callbacks)
    saes = SaeRun(
        layers={layer: fit.trainer.sae.cpu() for layer, fit in fits.items()},
        dead={layer: dead for layer, (dead, _) in judged.items()},
        record=SaeRecord.of(store, params, rules, seed, {n: fit.tokens for n, fit in fits.items()}),
    )
    quality = SaeQuality(protocol=rules.name, layers={name: q for name, (_, q) in judged.items()})
    curve = "".join(fit.curve for fit in fits.values())
    return SaeResult(saes, quality, ",".join(CURVE) + "\n" + curve)


def _require_single_views(store: FeatureStore) -> None:
    if store.spec.backbone.tiles is not None:
        raise SpgError(
            f"{store.path} holds images in tiles ({store.spec.backbone.seen_at}); detectors learn "
            "from single views, and judge tiles like these. Extract the auxiliary set without "
            "tiles."
        )


class Fit:
    """The SAE of one layer, and how far it is."""

    def __init__(
        self,
        store: FeatureStore,
        layer: str,
        params: SaeParams,
        seed: int,
        dead_rule: str,
        device: str,
    ) -> None:
        self.layer, self.params, self.seed = layer, params, seed
        shape = store.spec.layers[layer]
        sae = SparseAutoencoder(shape.dim, params.dict_size, params.k, seed, params.activation)
        self.trainer = SaeTrainer(sae.to(device), dead_rule, CONSTANTS, params.prefixes)
        self.epoch_tokens = len(store) * shape.patches
        self.budget = params.tokens or params.epochs * self.epoch_tokens
        """Tokens to see; the run ends with the batch that reaches it."""
        self.tokens = self.step = self.next_point = 0
        self.curve = ""

    @property
    def done(self) -> bool:
        """Whether all its tokens are seen."""
        return self.tokens >= self.budget

    def take(self, x: Tensor, callbacks: Callbacks) -> None:
        """One step on tokens (n, D) as stored."""
        result, dead = self.trainer.step(sae_input(x, self.params.input_norm))
        self.tokens, self.step = self.tokens + len(x), self.step + 1
        # Looking at a loss waits for the device: only for the points of the curve.
        if self.tokens < min(self.next_point, self.budget):
            return
        self.next_point = self.tokens + max(1, self.budget // _CURVE_POINTS)
        loss, auxk = result.reconstruction.item(), result.auxk.item()
        if not np.isfinite(loss + auxk):
            raise DivergedError(
                f"Layer {self.layer}: the loss is {loss} after {self.step} steps. {_ADVICE}"
            )
        share = float(dead.float().mean())
        line = f"{self.layer},{self.step},{self.tokens},{loss:.8g},{auxk:.8g},{share:.6g}"
        self.curve += f"{line}\n"
        callbacks.point(_row(line))
        callbacks.progress(self.layer, min(self.tokens, self.budget), self.budget, loss)


def _row(line: str) -> dict[str, str]:
    return dict(zip(CURVE, line.split(","), strict=True))


def batch_size(params: SaeParams, patches: int) -> int:
    """Tokens of a whole batch, of images with so many patches."""
    return params.batch_tokens or (params.batch_images or 1) * patches


def steps_of(params: SaeParams, images: int, patches: int) -> int:
    """Optimiser steps that training a layer takes; an epoch's last batch may be short."""
    batch, epoch = batch_size(params, patches), images * patches
    epochs, rest = divmod(params.tokens or params.epochs * epoch, epoch)
    return epochs * -(-epoch // batch) + -(-rest // batch)


def batches(fit: Fit, source: TokenSource) -> Iterator[Tensor]:
    """Batches (n, D) from where the fit stands, epoch after epoch, without an end."""
    images, tokens = fit.params.batch_images, fit.params.batch_tokens
    per_epoch = -(-fit.epoch_tokens // batch_size(fit.params, source.patches))
    epoch, start = divmod(fit.step, per_epoch)
    while True:
        given = {"seed": fit.seed, "epoch": epoch, "start": start}
        yield from token_batches(source, **given, batch_images=images, batch_tokens=tokens)
        epoch, start = epoch + 1, 0


def _state(fits: Mapping[str, Fit]) -> Saved:
    """Of all layers, for a checkpoint."""
    tensors = {
        f"{layer}.{name}": value
        for layer, fit in fits.items()
        for name, value in fit.trainer.state().items()
    }
    names = ("tokens", "step", "next_point", "curve")
    return tensors, {
        layer: {name: getattr(fit, name) for name in names} for layer, fit in fits.items()
    }


def _restore(fits: Mapping[str, Fit], saved: Saved, callbacks: Callbacks) -> None:
    """Go on from what `_state` gave."""
    for layer, fit in fits.items():
        fit.trainer.restore(below(saved[0], f"{layer}."))
        vars(fit).update(saved[1][layer])
        for line in fit.curve.splitlines():
            callbacks.point(_row(line))


def _judged(
    fit: Fit, source: TokenSource, count_cls: bool, callbacks: Callbacks
) -> tuple[Tensor, LayerQuality]:
    """The dead mask (C,) and the figures of a layer's SAE, or an SpgError if it is of no use."""
    params = fit.params
    quality = measure(
        fit.trainer.sae,
        source,
        norm=params.input_norm,
        count_cls=count_cls,
        prefixes=params.prefixes,
        progress=lambda done, total: callbacks.progress(f"{fit.layer} measured", done, total, None),
    )
    dead = float(quality.dead.float().mean())
    if not np.isfinite(quality.r2) or dead == 1:
        raise DivergedError(
            f"Layer {fit.layer}: training went wrong (R² {quality.r2:.3g}, {dead:.0%} of the "
            f"latents dead). {_ADVICE}"
        )
    if dead > _MANY_DEAD:
        callbacks.say(
            f"Layer {fit.layer}: {dead:.0%} of the latents are dead, no token activates them. "
            "Lower sae.dict_size, or raise sae.k."
        )
    epochs = fit.tokens / fit.epoch_tokens
    figures = quality.record(tokens_seen=fit.tokens, steps=fit.step, epochs=epochs)
    return quality.dead, figures

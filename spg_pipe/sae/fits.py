"""A grid's jobs on each layer: how far they are, their curves, and checkpoints of all."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artefacts.checkpoint import Checkpoints, below
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.recipe.params import MethodParams, SaeParams
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.model import InputTransform, SparseAutoencoder
from spg_pipe.sae.quality import Quality
from spg_pipe.sae.trainer import SaeTrainer
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import token_batches

_CURVE_POINTS = 400
_MANY_SILENT = 0.5
"""Share of latents without an active token in an epoch that is worth a message."""
_SILENT_BATCHES = 8
"""Fewer say little: in a few batches many a sound latent has no token of its kind."""


@dataclass(frozen=True)
class SaeJob:
    """One SAE of a grid."""

    params: SaeParams
    seed: int
    """Of the dictionary, and of the batches' order unless `params.order_seed` says otherwise."""

    @property
    def order(self) -> int:
        """Seed of the batches' order."""
        return self.seed if self.params.order_seed is None else self.params.order_seed

    @property
    def stream(self) -> tuple[int | None, ...]:
        """Jobs with the same value see the same batches."""
        p = self.params
        return self.order, p.batch_images, p.batch_tokens, p.window_images, p.run_images

    def settings(self) -> dict[str, Any]:
        """All that sets it apart from others on its store: part of a checkpoint's fingerprint."""
        return {"sae": self.params.model_dump(mode="json"), "seed": self.seed}


@dataclass
class Fit:
    """One job on one layer, and how far it is."""

    job: SaeJob
    layer: str
    trainer: SaeTrainer
    transform: InputTransform
    budget: int
    epoch_tokens: int
    tokens: int = 0
    step: int = 0
    next_point: int = 0
    warned: bool = False
    fault: str | None = None
    """Why it was given up: the others of its grid go on."""
    curve: io.StringIO = field(default_factory=io.StringIO)
    measured: Quality = field(init=False)
    """Set when all its tokens are seen, unless it was given up."""

    @property
    def name(self) -> str:
        """What tells it from the others of its grid, for messages."""
        p = self.job.params
        return f"Layer {self.layer}, dict_size {p.dict_size}, k {p.k}, seed {self.job.seed}"

    @property
    def done(self) -> bool:
        return self.fault is not None or self.tokens >= self.budget

    def take(self, x: Tensor) -> float | None:
        """One step on tokens (n, D) as stored. The loss, if a point of the curve is due."""
        progress = self.tokens / self.budget
        x = self.transform(x)
        if self.step == 0:
            self.trainer.prepare(x)
        result, dead = self.trainer.step(x, progress)
        self.tokens, self.step = self.tokens + len(x), self.step + 1
        # Looking at a loss waits for the device: only for the points of the curve.
        if self.tokens < min(self.next_point, self.budget):
            return None
        self.next_point = self.tokens + max(1, self.budget // _CURVE_POINTS)
        loss, auxk = result.reconstruction.item(), result.auxk.item()
        if not np.isfinite(loss + auxk):
            self.fault = (
                f"Layer {self.layer}: the loss is {loss} after {self.step} steps. "
                "Lower sae.lr, or check the tokens with `spg-pipe inspect STORE`."
            )
            return None
        share = float(dead.float().mean())
        self.curve.write(
            f"{self.layer},{self.step},{self.tokens},{loss:.8g},{auxk:.8g},{share:.6g}\n"
        )
        return loss

    def silent_note(self) -> str | None:
        """Said once, when most latents are silent for an epoch, or for a quarter of the run.

        Never of a run of less than twice `_SILENT_BATCHES`.
        """
        some = _SILENT_BATCHES * -(-self.tokens // self.step)
        window = max(min(self.epoch_tokens, self.budget // 4), some)
        if self.warned or self.tokens < 2 * window:
            return None
        counter = self.trainer.counter
        per_age = self.tokens / self.step if counter.rule == "steps" else 1
        share = float((counter.age * per_age > window).float().mean())
        if share <= _MANY_SILENT:
            return None
        self.warned = True
        return (
            f"{self.name}: {share:.0%} of the latents had no active token among the last "
            f"{window:,} (after {min(self.tokens, self.budget):,} of {self.budget:,}). "
            "Lower sae.lr or sae.dict_size, raise sae.k, or try sae.input_norm: center."
        )

    def diverged_note(self) -> str | None:
        """Of a finished fit that is worse than none."""
        if self.measured.r2 >= 0:
            return None
        penalised = self.job.params.activation in ("relu", "jumprelu")
        lower = "sae.lr or sae.sparsity" if penalised else "sae.lr"
        return (
            f"{self.name}: R² {self.measured.r2:.3g}; below 0 the mean token is nearer to a token "
            f"than what the SAE makes of it. Lower {lower}, or "
            "train for longer (sae.epochs, sae.tokens)."
        )

    def seen(self) -> dict[str, float]:
        """For quality.json."""
        epochs = self.tokens / self.epoch_tokens
        return {"tokens_seen": self.tokens, "steps": self.step, "epochs": epochs}


@dataclass
class Grid:
    """All fits of a run, and its checkpoints."""

    fits: dict[str, list[Fit]]
    fingerprint: str
    checkpoints: Checkpoints | None

    @classmethod
    def start(
        cls,
        store: FeatureStore,
        jobs: Sequence[SaeJob],
        method: MethodParams,
        device: str,
        checkpoints: Checkpoints | None,
    ) -> "Grid":
        settings = protocol(method.protocol)
        rule = settings.dead_counter
        fits = {
            layer: [start_fit(store, layer, job, rule, device) for job in jobs]
            for layer in store.layers
        }
        content = {
            "store": store.fingerprint,
            "jobs": [job.settings() for job in jobs],
            "protocol": settings.to_dict(),
        }
        grid = cls(fits, fingerprint(content), checkpoints)
        found = checkpoints.load(grid.fingerprint) if checkpoints else None
        if found:
            grid._restore(*found)
        return grid

    def _each(self) -> Iterator[tuple[str, Fit]]:
        for layer, fits in self.fits.items():
            for number, fit in enumerate(fits):
                yield f"{layer}.{number}", fit

    def save_if_due(self) -> None:
        """Write a checkpoint if it is time for one."""
        if self.checkpoints is None or not self.checkpoints.due():
            return
        tensors: dict[str, Tensor] = {}
        state = {}
        for name, fit in self._each():
            tensors |= {f"{name}.{key}": value for key, value in fit.trainer.state().items()}
            state[name] = {key: getattr(fit, key) for key in _STATE}
            state[name]["curve"] = fit.curve.getvalue()
        self.checkpoints.save(self.fingerprint, tensors, state)

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        for name, fit in self._each():
            fit.trainer.restore(below(tensors, f"{name}."))
            for key in _STATE:
                setattr(fit, key, state[name][key])
            fit.curve.write(state[name]["curve"])


_STATE = ("tokens", "step", "next_point", "warned", "fault")


def start_fit(store: FeatureStore, layer: str, job: SaeJob, rule: str, device: str) -> Fit:
    """A job on a layer at step 0."""
    params, shape = job.params, store.spec.layers[layer]
    sae = SparseAutoencoder(shape.dim, params.dict_size, params.k, job.seed, params.activation)
    trainer = SaeTrainer.start(sae.to(device), params, rule)
    epoch_tokens = len(store) * shape.patches
    budget = params.tokens or params.epochs * epoch_tokens
    transform = input_transform(store, layer, params.input_norm, device)
    return Fit(job, layer, trainer, transform, budget, epoch_tokens)


def input_transform(store: FeatureStore, layer: str, norm: str, device: str) -> InputTransform:
    """What `sae.input_norm` does to a layer's tokens."""
    if norm not in ("center", "standard"):
        return InputTransform(norm)
    mean, deviation = store.array(f"mean_{layer}"), store.array(f"std_{layer}")
    scale = max(float(np.sqrt(np.mean(np.square(deviation, dtype=np.float64)))), 1e-12)
    return InputTransform(
        norm,
        torch.from_numpy(mean.astype(np.float32)).to(device),
        torch.tensor(scale, dtype=torch.float32, device=device) if norm == "standard" else None,
    )


def batches(fit: Fit, source: TokenSource) -> Iterator[Tensor]:
    """Batches from where the fit stands, epoch after epoch."""
    params = fit.job.params
    per_epoch = (
        -(-len(source.store) // params.batch_images)
        if params.batch_images
        else -(-fit.epoch_tokens // (params.batch_tokens or 1))
    )
    epoch, start = divmod(fit.step, per_epoch)
    while True:
        yield from token_batches(
            source,
            seed=fit.job.order,
            epoch=epoch,
            start=start,
            batch_images=params.batch_images,
            batch_tokens=params.batch_tokens,
            window_images=params.window_images,
            run_images=params.run_images,
        )
        epoch, start = epoch + 1, 0

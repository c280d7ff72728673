"""Fit sparse autoencoders on a store's patch tokens: one or a whole grid in one pass.

Every SAE of a grid sees the batches that it would see alone, so it comes out the same; tokens are
read once for all that see the same ones. A run that is given a place for checkpoints goes on after
a kill with the bits of an unbroken one.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artifacts import fingerprint, versions
from spg_pipe.checkpoint import Checkpoints
from spg_pipe.errors import SpgError
from spg_pipe.params import MethodParams, SaeParams
from spg_pipe.protocol import protocol
from spg_pipe.sae.model import InputTransform, SparseAutoencoder
from spg_pipe.sae.quality import measure
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.trainer import SaeTrainer
from spg_pipe.store.mixing import mixing
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import token_batches

_CURVE_POINTS = 400
_MANY_SILENT = 0.5
"""Share of latents without an active token in an epoch that is worth a message."""

Progress = Callable[[str, int, int, float], None]
"""layer, tokens done, tokens in all, loss of the first SAE."""


@dataclass(frozen=True)
class SaeJob:
    """One SAE of a grid."""

    params: SaeParams
    seed: int
    """Of the dictionary, and of the batches' order unless `params.order_seed` says otherwise."""

    @property
    def stream(self) -> tuple[object, ...]:
        """Jobs with the same value see the same batches."""
        p = self.params
        order = self.seed if p.order_seed is None else p.order_seed
        return order, p.batch_images, p.batch_tokens, p.window_images, p.run_images


class SaeResult(NamedTuple):
    """What a job makes."""

    run: SaeRun
    quality: dict[str, Any]
    """Per layer, for quality.json: see `spg_pipe.sae.quality`; with tokens seen, epochs, protocol,
    and how near its batches came to a shuffle of all tokens."""
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
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> SaeResult:
    """Train an SAE for every layer of a store: `train_saes` of a single job."""
    return train_saes(
        store,
        [SaeJob(params, seed)],
        method,
        device=device,
        cache=cache,
        progress=progress,
        checkpoints=checkpoints,
        say=say,
    )[0]


def train_saes(
    store: FeatureStore,
    jobs: Sequence[SaeJob],
    method: MethodParams,
    *,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> list[SaeResult]:
    """Train SAEs for every layer of a store, all that see the same batches in one pass.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary dataset.
    jobs : sequence of SaeJob
        Several sizes or seeds; those that differ in `SaeJob.stream` take a pass each.
    cache : "auto" | "device" | "host" | "none"
        Where the tokens wait, see `TokenSource`; does not change the result.
    checkpoints : Checkpoints, optional
        Where the run keeps its state, and goes on from it. The caller removes it when the
        artefacts are in their place.
    say : callable
        Told of a layer whose latents mostly stay silent.

    Returns
    -------
    list of SaeResult
        In the order of the jobs.

    Raises
    ------
    SpgError
        If a loss is not finite, or every latent of an SAE is dead.
    """
    settings = protocol(method.protocol)
    grid = _Grid.start(store, jobs, method, device, checkpoints)
    for layer in store.layers:
        source = TokenSource(store, layer, device=device, cache=cache)
        for stream in dict.fromkeys(job.stream for job in jobs):
            together = [fit for fit in grid.fits[layer] if fit.job.stream == stream]
            _fit(together, source, grid, progress, say)
    results = []
    for number, job in enumerate(jobs):
        layers: dict[str, SparseAutoencoder] = {}
        dead: dict[str, Tensor] = {}
        quality: dict[str, Any] = {}
        for layer in store.layers:
            fit = grid.fits[layer][number]
            source = TokenSource(store, layer, device=device, cache=cache)
            measured = measure(
                fit.trainer.sae, source, fit.transform, settings.dead_mask_counts_cls
            )
            if not np.isfinite(measured.r2) or bool(measured.dead.all()):
                raise SpgError(
                    f"Layer {layer}: training went wrong (R² {measured.r2:.3g}, "
                    f"{float(measured.dead.float().mean()):.0%} of the latents dead). "
                    "Lower sae.lr."
                )
            layers[layer], dead[layer] = fit.trainer.sae.cpu(), measured.dead
            quality[layer] = measured.summary() | fit.seen(source)
            quality[layer] |= {"protocol": settings.name, "mixing": _mixing(store, layer, job)}
        config = _config(store, job, settings.to_dict(), quality)
        curve = "".join(grid.fits[layer][number].curve.getvalue() for layer in store.layers)
        results.append(SaeResult(SaeRun(layers, dead, config), quality, _HEADER + curve))
    return results


_HEADER = "layer,step,tokens,reconstruction,auxk,dead_share\n"


@dataclass
class _Fit:
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
    curve: io.StringIO = field(default_factory=io.StringIO)

    @property
    def done(self) -> bool:
        return self.tokens >= self.budget

    def take(self, x: Tensor) -> float | None:
        """One step on tokens (n, D) as stored. The loss, if a point of the curve is due."""
        progress = self.tokens / self.budget
        result, dead = self.trainer.step(self.transform(x), progress)
        self.tokens, self.step = self.tokens + len(x), self.step + 1
        # Looking at a loss waits for the device: only for the points of the curve.
        if self.tokens < min(self.next_point, self.budget):
            return None
        self.next_point = self.tokens + max(1, self.budget // _CURVE_POINTS)
        loss, auxk = result.reconstruction.item(), result.auxk.item()
        if not np.isfinite(loss + auxk):
            raise SpgError(
                f"Layer {self.layer}: the loss is {loss} after {self.step} steps. "
                "Lower sae.lr, or check the tokens with `spg-pipe inspect STORE`."
            )
        share = float(dead.float().mean())
        self.curve.write(
            f"{self.layer},{self.step},{self.tokens},{loss:.8g},{auxk:.8g},{share:.6g}\n"
        )
        return loss

    def silent_note(self) -> str | None:
        """Said once, when most latents had no active token for an epoch."""
        if self.warned or self.tokens < 2 * self.epoch_tokens:
            return None
        counter = self.trainer.counter
        per_age = self.tokens / self.step if counter.rule == "steps" else 1
        share = float((counter.age * per_age > self.epoch_tokens).float().mean())
        if share <= _MANY_SILENT:
            return None
        self.warned = True
        return (
            f"Layer {self.layer}, {self.job.params.dict_size} latents: {share:.0%} of them had no "
            f"active token in the last epoch (after {self.tokens:,} of {self.budget:,} tokens). "
            "Lower sae.lr or sae.dict_size, raise sae.k, or try sae.input_norm: center."
        )

    def seen(self, source: TokenSource) -> dict[str, float]:
        """For quality.json."""
        epochs = self.tokens / self.epoch_tokens
        return {"tokens_seen": self.tokens, "steps": self.step, "epochs": epochs}


@dataclass
class _Grid:
    """All fits of a run, and its checkpoints."""

    fits: dict[str, list[_Fit]]
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
    ) -> "_Grid":
        rule = protocol(method.protocol).dead_counter
        fits = {
            layer: [_start(store, layer, job, rule, device) for job in jobs]
            for layer in store.layers
        }
        content = {
            "store": store.fingerprint,
            "jobs": [(job.params.model_dump(mode="json"), job.seed) for job in jobs],
            "method": method.model_dump(mode="json"),
            "device": device,
            "versions": versions(),
        }
        grid = cls(fits, fingerprint(content), checkpoints)
        found = checkpoints.load(grid.fingerprint) if checkpoints else None
        if found:
            grid._restore(*found)
        return grid

    def _each(self) -> Iterator[tuple[str, _Fit]]:
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
            prefix = f"{name}."
            fit.trainer.restore(
                {
                    key.removeprefix(prefix): value
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                }
            )
            for key in _STATE:
                setattr(fit, key, state[name][key])
            fit.curve.write(state[name]["curve"])


_STATE = ("tokens", "step", "next_point", "warned")


def _start(store: FeatureStore, layer: str, job: SaeJob, rule: str, device: str) -> _Fit:
    params, shape = job.params, store.spec.layers[layer]
    sae = SparseAutoencoder(shape.dim, params.dict_size, params.k, job.seed, params.activation)
    trainer = SaeTrainer.start(sae.to(device), params, rule)
    epoch_tokens = len(store) * shape.patches
    budget = params.tokens or params.epochs * epoch_tokens
    transform = input_transform(store, layer, params.input_norm, device)
    return _Fit(job, layer, trainer, transform, budget, epoch_tokens)


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


def _fit(
    fits: list[_Fit],
    source: TokenSource,
    grid: _Grid,
    progress: Progress | None,
    say: Callable[[str], None],
) -> None:
    """Step all fits through the batches that they share until the last has its tokens."""
    longest = max(fits, key=lambda fit: fit.budget)
    if longest.done:
        return
    for x in _batches(longest, source):
        tokens = x.float()
        loss = None
        for fit in fits:
            if not fit.done:
                found = fit.take(tokens)
                loss = found if fit is longest else loss
                if found is not None and (note := fit.silent_note()):
                    say(note)
        if progress and loss is not None:
            progress(source.layer, longest.tokens, longest.budget, loss)
        if longest.done:
            return
        grid.save_if_due()


def _batches(fit: _Fit, source: TokenSource) -> Iterator[Tensor]:
    """Batches from where the fit stands, epoch after epoch."""
    params = fit.job.params
    order = fit.job.stream[0]
    per_epoch = (
        -(-len(source.store) // params.batch_images)
        if params.batch_images
        else -(-fit.epoch_tokens // (params.batch_tokens or 1))
    )
    epoch, start = divmod(fit.step, per_epoch)
    while True:
        yield from token_batches(
            source,
            seed=int(order),  # type: ignore[call-overload]
            epoch=epoch,
            start=start,
            batch_images=params.batch_images,
            batch_tokens=params.batch_tokens,
            window_images=params.window_images,
            run_images=params.run_images,
        )
        epoch, start = epoch + 1, 0


def _mixing(store: FeatureStore, layer: str, job: SaeJob) -> dict[str, float]:
    params = job.params
    return mixing(
        store.array("category"),
        store.spec.layers[layer].patches,
        batch_tokens=params.batch_tokens,
        batch_images=params.batch_images,
        window_images=params.window_images,
        run_images=params.run_images,
        seed=job.seed if params.order_seed is None else params.order_seed,
    ).to_dict()


def _config(
    store: FeatureStore,
    job: SaeJob,
    protocol_settings: dict[str, object],
    quality: dict[str, Any],
) -> dict[str, Any]:
    content = {
        "kind": "sparse autoencoder",
        "format": 1,
        "layers": list(store.layers),
        "seed": job.seed,
        "sae": job.params.model_dump(mode="json"),
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

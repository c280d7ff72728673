"""Fit sparse autoencoders on a store's patch tokens: one or a whole grid in one pass.

Every SAE of a grid sees the batches that it would see alone, so it comes out the same; tokens are
read once for all that see the same ones. A run that is given a place for checkpoints goes on after
a kill with the bits of an unbroken one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.artefacts.files import fingerprint, versions
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import MethodParams, SaeParams
from spg_pipe.recipe.protocol import Protocol, protocol
from spg_pipe.sae.fits import Fit, Grid, SaeJob, batches
from spg_pipe.sae.quality import measure_all
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.order import measure_mixing
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource

Progress = Callable[[str, int, int, float | None], None]
"""layer, tokens done, tokens in all, loss of the first SAE; then "LAYER measured", no loss."""


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
    """Train an SAE for every layer of a store: `train_saes` of a single job.

    Raises
    ------
    SpgError
        If a loss is not finite, or every latent of an SAE is dead.
    """
    (result,) = train_saes(
        store,
        [SaeJob(params, seed)],
        method,
        device=device,
        cache=cache,
        progress=progress,
        checkpoints=checkpoints,
        say=say,
    )
    if isinstance(result, SpgError):
        raise result
    return result


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
) -> list[SaeResult | SpgError]:
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
        Told of a layer whose latents mostly stay silent, or that came out worse than none.

    Returns
    -------
    list of SaeResult or SpgError
        In the order of the jobs. An error says why a job has no result: a loss is not finite, or
        every latent is dead. The others are not touched by it.
    """
    if store.spec.backbone.tiles is not None:
        raise SpgError(
            f"{store.path} holds images in tiles ({store.spec.backbone.seen_at}); detectors learn "
            "from single views, and judge tiles like these. Extract the auxiliary set without "
            "tiles."
        )
    settings = protocol(method.protocol)
    grid = Grid.start(store, jobs, method, device, checkpoints)
    for layer in store.layers:
        source = TokenSource(store, layer, device=device, cache=cache)
        for stream in dict.fromkeys(job.stream for job in jobs):
            together = [fit for fit in grid.fits[layer] if fit.job.stream == stream]
            _fit(together, source, grid, progress, say)
        _measure(grid.fits[layer], source, settings.dead_mask_counts_cls, progress, say)
    return [
        _result(store, job, settings, [grid.fits[layer][number] for layer in store.layers])
        for number, job in enumerate(jobs)
    ]


def _measure(
    fits: list[Fit],
    source: TokenSource,
    count_cls: bool,
    progress: Progress | None,
    say: Callable[[str], None],
) -> None:
    """The quality of every SAE of a layer that was not given up."""
    sound = [fit for fit in fits if fit.fault is None]
    saes = [(fit.trainer.sae, fit.transform, fit.job.params.prefixes) for fit in sound]

    def told(done: int, total: int) -> None:
        if progress:
            progress(f"{source.layer} measured", done, total, None)

    measured = measure_all(saes, source, count_cls, progress=told)
    for fit, found in zip(sound, measured, strict=True):
        fit.measured = found
        if not np.isfinite(found.r2) or bool(found.dead.all()):
            fit.fault = (
                f"Layer {fit.layer}: training went wrong (R² {found.r2:.3g}, "
                f"{float(found.dead.float().mean()):.0%} of the latents dead). Lower sae.lr."
            )
        elif note := fit.diverged_note():
            say(note)


def _result(
    store: FeatureStore, job: SaeJob, settings: Protocol, fits: list[Fit]
) -> SaeResult | SpgError:
    """What a job made, of its fit on each layer."""
    faults = [fit.fault for fit in fits if fit.fault is not None]
    if faults:
        return SpgError(faults[0])
    quality, dead = {}, {}
    for fit in fits:
        measured = fit.measured
        dead[fit.layer] = measured.dead
        quality[fit.layer] = measured.summary() | fit.seen()
        quality[fit.layer] |= {"protocol": settings.name, "mixing": _mixing(store, fit.layer, job)}
    layers = {fit.layer: fit.trainer.sae.cpu() for fit in fits}
    config = _config(store, job, settings.to_dict(), quality)
    curve = _HEADER + "".join(fit.curve.getvalue() for fit in fits)
    return SaeResult(SaeRun(layers, dead, config), quality, curve)


_HEADER = "layer,step,tokens,reconstruction,auxk,dead_share\n"


def _fit(
    fits: list[Fit],
    source: TokenSource,
    grid: Grid,
    progress: Progress | None,
    say: Callable[[str], None],
) -> None:
    """Step all fits through the batches that they share until the last has its tokens."""
    running = [fit for fit in fits if not fit.done]
    for x in batches(running[0], source) if running else ():
        tokens, loss = x.float(), None
        leader = max(running, key=lambda fit: fit.budget)
        for fit in running:
            found = fit.take(tokens)
            if found is not None:
                loss = found if loss is None else loss
                if note := fit.silent_note():
                    say(note)
        if progress and loss is not None:
            progress(source.layer, min(leader.tokens, leader.budget), leader.budget, loss)
        running = [fit for fit in running if not fit.done]
        if not running:
            return
        grid.save_if_due()


def _mixing(store: FeatureStore, layer: str, job: SaeJob) -> dict[str, float]:
    params = job.params
    return measure_mixing(
        store.array("category"),
        store.spec.layers[layer].patches,
        batch_tokens=params.batch_tokens,
        batch_images=params.batch_images,
        window_images=params.window_images,
        run_images=params.run_images,
        seed=job.order,
    ).model_dump(mode="json")


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
        "backbone": store.spec.backbone.untiled.content(),
        "licences": list(store.licences),
    }
    return content | {"fingerprint": fingerprint(content), "versions": versions()}

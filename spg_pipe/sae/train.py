"""Fit sparse autoencoders on a store's patch tokens: one or a whole grid in one pass.

Every SAE of a grid sees the batches that it would see alone, so it comes out the same; tokens are
read once for all that see the same ones. A run that is given a place for checkpoints goes on after
a kill with the bits of an unbroken one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from spg_pipe.artifacts import fingerprint, versions
from spg_pipe.checkpoint import Checkpoints
from spg_pipe.errors import SpgError
from spg_pipe.params import MethodParams, SaeParams
from spg_pipe.protocol import protocol
from spg_pipe.sae.fits import Fit, Grid, SaeJob, batches
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.quality import measure
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.mixing import mixing
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource

Progress = Callable[[str, int, int, float], None]
"""layer, tokens done, tokens in all, loss of the first SAE."""


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
    grid = Grid.start(store, jobs, method, device, checkpoints)
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


def _fit(
    fits: list[Fit],
    source: TokenSource,
    grid: Grid,
    progress: Progress | None,
    say: Callable[[str], None],
) -> None:
    """Step all fits through the batches that they share until the last has its tokens."""
    longest = max(fits, key=lambda fit: fit.budget)
    if longest.done:
        return
    for x in batches(longest, source):
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


def _mixing(store: FeatureStore, layer: str, job: SaeJob) -> dict[str, float]:
    params = job.params
    return mixing(
        store.array("category"),
        store.spec.layers[layer].patches,
        batch_tokens=params.batch_tokens,
        batch_images=params.batch_images,
        window_images=params.window_images,
        run_images=params.run_images,
        seed=job.order,
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

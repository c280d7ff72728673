"""Feature stores of auxiliary sets → SAEs → detectors."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.artefacts.checkpoint import Checkpoints, checkpoint_path
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.pipeline.checked import checked_sae
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.paths import with_suffix_hash

if TYPE_CHECKING:
    from spg_pipe.detector.make import DetectorPlan
    from spg_pipe.sae.run import LayerQuality
    from spg_pipe.store.reader import FeatureStore


def train_sae(run: RecipeRun, aux: str, seed: int, *, store: Path | None = None) -> Path:
    """FeatureStore of the auxiliary set → SparseAutoencoder."""
    return train_saes(run, aux, [seed], store=store)[0]


def train_saes(
    run: RecipeRun, aux: str, seeds: Sequence[int], *, store: Path | None = None
) -> list[Path]:
    """FeatureStore of the auxiliary set → an SAE for every seed, one after the other."""
    features = checked_store(run, find_dataset(run.params, aux), store)
    given = {"store": features.fingerprint} if store else {}
    return [_train_sae(run, features, aux, seed, given) for seed in seeds]


def _train_sae(
    run: RecipeRun, features: "FeatureStore", aux: str, seed: int, given: Mapping[str, str]
) -> Path:
    """One SAE; its checkpoint lies beside it."""
    from spg_pipe.sae.train import Callbacks, DivergedError
    from spg_pipe.sae.train import train_sae as train

    path, device = run.paths.sae(aux, seed, given), choose_device(run.device)
    checkpoints = Checkpoints(checkpoint_path(path), device, say=run.console.say)
    with run.console.progress(f"train-sae {aux} seed {seed}", "tokens") as update:
        callbacks = Callbacks(
            lambda layer, done, total, loss: update(done, total, loss, layer), run.console.say
        )
        try:
            result = train(
                features,
                run.params.sae,
                run.params.method,
                seed=seed,
                device=device,
                cache=run.cache,
                checkpoints=checkpoints,
                callbacks=callbacks,
            )
        except DivergedError:
            checkpoints.remove()
            raise
    result.run.save(path, result.quality, result.curve)
    checkpoints.remove()
    for layer, quality in result.quality.layers.items():
        run.console.say(_quality_line(layer, quality))
    run.console.say(f"SAE of {aux}, seed {seed} → {path}")
    return path


def _by_stream(
    wanted: "list[tuple[RecipeRun, DetectorPlan]]",
    train: "Callable[[list[tuple[RecipeRun, DetectorPlan]]], list[Path]]",
) -> list[Path]:
    """Train what sees the same batches together; the places in the order of `wanted`."""
    places: dict[int, Path] = {}
    for stream in dict.fromkeys(job.stream for _, job in wanted):
        chosen = [number for number, (_, job) in enumerate(wanted) if job.stream == stream]
        places |= dict(zip(chosen, train([wanted[n] for n in chosen]), strict=True))
    return [places[number] for number in range(len(wanted))]


def _checkpoints(
    jobs: "list[tuple[RecipeRun, DetectorPlan]]", artefact: Path, *determining: object
) -> Checkpoints:
    """Of a pass: beside its first artefact, under a name of its own if it makes several."""
    run = jobs[0][0]
    if len(jobs) > 1:
        content = {"pass": determining, "runs": [job.settings() for _, job in jobs]}
        artefact = with_suffix_hash(artefact, fingerprint(content))
    device = choose_device(run.device)
    return Checkpoints(checkpoint_path(artefact), device, say=run.console.say)


def _quality_line(layer: str, quality: "LayerQuality") -> str:
    alone = "".join(f", first {p} {r2:.3f}" for p, r2 in quality.r2_prefixes.items())
    return (
        f"  {layer}: R² {quality.r2:.3f}{alone}, L0 {quality.l0:.1f}, "
        f"dead {quality.dead_share:.1%}, {quality.tokens_seen:,} tokens"
    )


def train_guides(
    run: RecipeRun, aux: str, seed: int, *, store: Path | None = None, sae: Path | None = None
) -> Path:
    """FeatureStore + SparseAutoencoder → Detector."""
    return train_guides_together([run], aux, [seed], store=store, sae=sae)[0]


def train_guides_together(
    runs: Sequence[RecipeRun],
    aux: str,
    seeds: Sequence[int],
    *,
    store: Path | None = None,
    sae: Path | None = None,
    order_seed: int | None = None,
) -> list[Path]:
    """FeatureStore + SparseAutoencoders → a Detector for every setting and seed.

    Those that see the same batches are trained in one pass over the store an epoch.

    Parameters
    ----------
    runs : sequence of RecipeRun
        One for each setting: they differ in `sae`, `guides`, `decision` and `score` alone.
    order_seed : int, optional
        Trained guides see the images in this order, whatever their seed, and so share a pass.

    Returns
    -------
    list of Path
        Setting by setting, seed by seed.
    """
    from spg_pipe.detector.make import DetectorPlan
    from spg_pipe.guides.trained.train import training_notes
    from spg_pipe.sae.run import SaeRun

    features = checked_store(runs[0], find_dataset(runs[0].params, aux), store)
    loaded = lru_cache(maxsize=None)(SaeRun.load)  # runs of one SAE share its dictionary
    wanted = []
    for run, seed in itertools.product(runs, seeds):
        source = sae or checked_sae(run, features, aux, seed)
        plan = DetectorPlan.of(run.params, loaded(source), seed)
        wanted.append((run, plan if order_seed is None else plan.ordered_by(order_seed)))
    given = ({"store": features.fingerprint} if store else {}) | (
        {"sae": loaded(sae).record.fingerprint} if sae else {}
    )
    fit = partial(_detectors_together, features=features, aux=aux, given=given)
    places = _by_stream(wanted, fit)
    for note in training_notes(features):
        runs[0].console.say(f"  note: {note}")
    return places


def _detectors_together(
    jobs: "list[tuple[RecipeRun, DetectorPlan]]",
    features: "FeatureStore",
    aux: str,
    *,
    given: Mapping[str, str],
) -> list[Path]:
    """One pass an epoch; its checkpoint lies beside the first detector."""
    from spg_pipe.detector.make import make_detectors

    run, seed = jobs[0][0], jobs[0][1].seed
    several = "" if len(jobs) == 1 else f", {len(jobs)} runs"
    place, method = run.paths.detector(aux, seed, given), run.params.method.model_dump(mode="json")
    checkpoints = _checkpoints(jobs, place, features.fingerprint, method)
    with run.console.progress(f"train-guides {aux} seed {seed}{several}") as update:
        results = make_detectors(
            features,
            [plan for _, plan in jobs],
            device=choose_device(run.device),
            cache=run.cache,
            progress=update,
            checkpoints=checkpoints,
            say=lambda note: run.console.say(f"  note: {note}"),
        )
    paths = []
    for (one, job), (detector, curve) in zip(jobs, results, strict=True):
        path = one.paths.detector(aux, job.seed, given)
        lines = [",".join(f"{value:.8g}" for value in row.values()) for row in curve]
        detector.save(path, "\n".join([",".join(curve[0]), *lines, ""]) if curve else "")
        one.console.say(f"Detector of {aux}, seed {job.seed} → {path}")
        paths.append(path)
    checkpoints.remove()
    return paths

"""Feature stores of auxiliary sets → SAEs → detectors."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

from spg_pipe.artefacts.checkpoint import Checkpoints, checkpoint_path
from spg_pipe.artefacts.files import fingerprint, require_writable
from spg_pipe.detector.make import DetectorPlan, make_detectors
from spg_pipe.errors import SpgError, counted
from spg_pipe.guides.trained.train import training_notes
from spg_pipe.pipeline.checked import checked_sae
from spg_pipe.pipeline.checked_store import checked_store, named_input
from spg_pipe.pipeline.live import live_curve
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import SaeParams
from spg_pipe.recipe.paths import with_suffix_hash
from spg_pipe.recipe.places import Place
from spg_pipe.sae.run import LayerQuality, SaeRun, read_quality
from spg_pipe.sae.train import Callbacks, DivergedError, batch_size, steps_of
from spg_pipe.sae.train import train_sae as train
from spg_pipe.store.reader import FeatureStore

FEWEST_STEPS = 100
"""Of an SAE's optimiser; after fewer it is a random dictionary, and that is an error."""
FEW_STEPS = 1000
"""Of an SAE's optimiser: after 44 steps the median atom has a cosine of 0.99 with its random start,
after 1,172 a third to a half have left it (docs/explain.md)."""


def train_sae(run: RecipeRun, aux: str, seed: int, *, store: Place | None = None) -> Path:
    """FeatureStore of the auxiliary set → SparseAutoencoder; its checkpoint lies beside it.

    An `SpgError` if it would be trained for too few steps, or comes out worse than none.
    """
    features, device = checked_store(run, aux, store), choose_device(run.device)
    given = named_input("store", store, run.paths.store(aux), features.fingerprint)
    path = run.paths.sae(aux, seed, given)
    require_writable(path)
    _require_steps(features, run.params.sae)
    checkpoints = Checkpoints(checkpoint_path(path), device, say=run.console.say)
    shown = run.console.progress(f"train-sae {aux} seed {seed}", "tokens")
    with shown as update, live_curve(run, path) as point:
        callbacks = Callbacks(
            lambda layer, done, total, loss: update(done, total, loss, layer),
            run.console.say,
            point,
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
            _require_useful(f"The SAE of {aux}, seed {seed},", result.quality.layers)
        except DivergedError:
            checkpoints.remove()
            raise
    result.run.save(path, result.quality, result.curve)
    checkpoints.remove()
    for layer, quality in result.quality.layers.items():
        alone = "".join(f", first {p} {r2:.3f}" for p, r2 in quality.r2_prefixes.items())
        run.console.say(
            f"  {layer}: R² {quality.r2:.3f}{alone}, L0 {quality.l0:.1f}, "
            f"dead {quality.dead_share:.1%}, {quality.tokens_seen:,} tokens"
        )
    steps = min(quality.steps for quality in result.quality.layers.values())
    if steps < FEW_STEPS:
        run.console.say(
            f"  note: only {steps} steps: many atoms still lie near their random start, and other "
            "seeds have others. Scores hardly depend on it; before you read atoms, train longer, "
            "with a larger sae.tokens."
        )
    run.console.say(f"SAE of {aux}, seed {seed} → {path}")
    return path


def _require_steps(features: FeatureStore, params: SaeParams) -> None:
    """Before anybody waits for it."""
    images, shapes = len(features), features.spec.layers
    steps = {name: steps_of(params, images, shape.patches) for name, shape in shapes.items()}
    layer = min(steps, key=lambda name: steps[name])
    if steps[layer] >= FEWEST_STEPS:
        return
    longer = f"sae.epochs={-(-FEWEST_STEPS * params.epochs // steps[layer])}"
    if params.tokens:
        most = max(batch_size(params, shape.patches) for shape in shapes.values())
        longer = f"sae.tokens={FEWEST_STEPS * most}"
    smaller = " or make smaller batches (sae.batch_images=null and sae.batch_tokens=1024)"
    raise SpgError(
        f"The SAE of layer {layer} would be trained for {counted(steps[layer], 'step')}; after "
        f"fewer than {FEWEST_STEPS} it is still a random dictionary. Train it for longer "
        f"(--set {longer}, or more){smaller if params.batch_images else ''}."
    )


def _require_useful(what: str, layers: Mapping[str, LayerQuality]) -> None:
    """Of SAEs that are trained."""
    for layer, quality in layers.items():
        if quality.steps < FEWEST_STEPS or quality.r2 < 0:
            raise DivergedError(
                f"{what} is of no use: layer {layer} has an R² of {quality.r2:.3g} after "
                f"{counted(quality.steps, 'step')}; it needs at least {FEWEST_STEPS}, and an R² "
                "above 0, or the mean token is nearer to a token than what the SAE makes of it. "
                "Run `spg-pipe train-sae` with a larger sae.tokens or sae.epochs, or try --set "
                "sae.input_norm=l2."
            )


def train_guides(
    run: RecipeRun, aux: str, seed: int, *, store: Place | None = None, sae: Path | None = None
) -> Path:
    """FeatureStore + SparseAutoencoder → Detector."""
    return train_guides_together([run], aux, [seed], store=store, sae=sae)[0]


def train_guides_together(
    runs: Sequence[RecipeRun],
    aux: str,
    seeds: Sequence[int],
    *,
    store: Place | None = None,
    sae: Path | None = None,
) -> list[Path]:
    """FeatureStore + SparseAutoencoders → a Detector for every setting and seed.

    Those that see the same batches are trained in one pass over the store an epoch.

    There is a run for each setting: they differ in `sae`, `guides`, `decision` and `score` alone.
    Paths are setting by setting, seed by seed.
    """
    features = checked_store(runs[0], aux, store)
    loaded = lru_cache(maxsize=None)(SaeRun.load)  # runs of one SAE share its dictionary
    jobs = []
    for run, seed in itertools.product(runs, seeds):
        path = sae or checked_sae(run, features, aux, seed)
        saes = loaded(path)
        _require_useful(f"{path}", read_quality(path).layers)
        jobs.append((run, DetectorPlan.of(run.params, saes, seed)))
    given = named_input("store", store, runs[0].paths.store(aux), features.fingerprint)
    if sae:
        own = runs[0].paths.sae(aux, seeds[0], given)
        given |= named_input("sae", sae, own, loaded(sae).record.fingerprint)
    for stream in dict.fromkeys(plan.stream for _, plan in jobs):
        together = [(run, plan) for run, plan in jobs if plan.stream == stream]
        _train_together(together, features, aux, given)
    for note in training_notes(features):
        runs[0].console.say(f"  note: {note}")
    return [run.paths.detector(aux, plan.seed, given) for run, plan in jobs]


def _train_together(
    jobs: list[tuple[RecipeRun, DetectorPlan]],
    features: FeatureStore,
    aux: str,
    given: Mapping[str, str],
) -> None:
    """One pass an epoch; its checkpoint lies beside the first detector."""
    run, seed = jobs[0][0], jobs[0][1].seed
    path, device = run.paths.detector(aux, seed, given), choose_device(run.device)
    several = "" if len(jobs) == 1 else f", {len(jobs)} runs"
    if several:  # the pass has a name of its own
        paths = [str(owner.paths.detector(aux, plan.seed, given)) for owner, plan in jobs]
        path = with_suffix_hash(path, fingerprint(paths))
    require_writable(path)
    checkpoints = Checkpoints(checkpoint_path(path), device, say=run.console.say)
    with ExitStack() as stack:
        update = stack.enter_context(
            run.console.progress(f"train-guides {aux} seed {seed}{several}")
        )
        curves = [
            stack.enter_context(live_curve(owner, owner.paths.detector(aux, plan.seed, given)))
            for owner, plan in jobs
            if plan.run  # contrast guides are made at once: they have no curve
        ]
        results = make_detectors(
            features,
            [plan for _, plan in jobs],
            device=device,
            cache=run.cache,
            progress=update,
            checkpoints=checkpoints,
            say=lambda note: run.console.say(f"  note: {note}"),
            point=lambda number, row: curves[number](row),
        )
    for (owner, plan), (detector, curve) in zip(jobs, results, strict=True):
        path = owner.paths.detector(aux, plan.seed, given)
        lines = [",".join(f"{value:.8g}" for value in row.values()) for row in curve]
        detector.save(path, "\n".join([",".join(curve[0]), *lines, ""]) if curve else "")
        owner.console.say(f"Detector of {aux}, seed {plan.seed} → {path}")
    checkpoints.remove()

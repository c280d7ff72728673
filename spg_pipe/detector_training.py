"""Feature store + SparseAutoencoders → Detectors: the guides' training and what is kept of it."""

from collections.abc import Sequence

from spg_pipe.artifacts import fingerprint, versions
from spg_pipe.checkpoint import Checkpoints
from spg_pipe.detector import FORMAT, Detector, LayerGuides
from spg_pipe.errors import SpgError
from spg_pipe.guides.train import GuideFit, GuideRun, Progress, fit_guides
from spg_pipe.guides.trainer import GuideTrainer
from spg_pipe.params import GuideParams, MethodParams, ScoreParams
from spg_pipe.protocol import protocol
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images


def train_guides(
    store: FeatureStore,
    saes: SaeRun,
    params: GuideParams,
    method: MethodParams,
    score: ScoreParams,
    *,
    seed: int,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
) -> tuple[Detector, list[dict[str, float]]]:
    """Train the guides of every layer and make a detector of them.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary dataset, with masks.
    saes : SaeRun
        Its SAEs; only their dictionaries and dead masks are used.
    score : ScoreParams
        Becomes part of the detector.
    seed : int
        Seeds the initial codes, and the order of the images unless `params.order_seed` is set.
    cache : "auto" | "device" | "host" | "none"
        Where the tokens wait, see `TokenSource`; does not change the result.

    Returns
    -------
    detector : Detector
    curve : list of dict
        A row an epoch: mean losses and positive codes, over layers.

    Raises
    ------
    SpgError
        If the SAE does not belong to the store, or there is nothing to learn from.
    """
    run = GuideRun(saes, params, seed)
    return train_guides_together(
        store, [run], method, [score], device=device, cache=cache, progress=progress
    )[0]


def train_guides_together(
    store: FeatureStore,
    runs: Sequence[GuideRun],
    method: MethodParams,
    scores: Sequence[ScoreParams],
    *,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[tuple[Detector, list[dict[str, float]]]]:
    """`train_guides` for several seeds or settings, in one pass over the store an epoch.

    Each detector and curve is to the bit what its run would give alone; each gets the scoring
    options of its place. See `fit_guides` for runs and checkpoints.
    """
    fits = fit_guides(
        store,
        runs,
        method,
        device=device,
        cache=cache,
        progress=progress,
        checkpoints=checkpoints,
    )
    return [
        (_detector(store, run, fit, method, score), fit.curve)
        for run, fit, score in zip(runs, fits, scores, strict=True)
    ]


def _detector(
    store: FeatureStore, run: GuideRun, fit: GuideFit, method: MethodParams, score: ScoreParams
) -> Detector:
    layers = {name: _finished(trainer) for name, trainer in fit.trainers.items()}
    _require_guides(layers)
    images = len(labelled_images(store))
    content = {
        "kind": "detector",
        "format": FORMAT,
        "layers": {name: {"grid": list(value.grid)} for name, value in layers.items()},
        "seed": run.seed,
        "tau": method.tau,
        "detection": method.detection,
        # The size of a batch does not change a score.
        "score": score.model_dump(mode="json", exclude={"batch_images"}),
        "guides": run.params.model_dump(mode="json"),
        "protocol": protocol(method.protocol).to_dict(),
        "auxiliary": {
            "dataset": store.spec.dataset,
            "split": store.spec.split,
            "images": images,
            "left_out": len(store) - images,
        }
        | ({"selection": store.selection} if store.selection else {}),
        "sae": {key: run.saes.config[key] for key in ("sae", "tokens_seen", "fingerprint")},
        "inputs": {"store": store.fingerprint, "sae": run.saes.config["fingerprint"]},
        "backbone": store.spec.backbone.to_dict(),
        "licences": list(store.licences),
    }
    config = content | {"fingerprint": fingerprint(content), "versions": versions()}
    return Detector(layers, config)


def _require_guides(layers: dict[str, LayerGuides]) -> None:
    """Guides without a direction would give every image the same score."""
    for name, guides in layers.items():
        lengths = guides.vectors.norm(dim=1)
        if not bool(lengths.isfinite().all()) or not bool((lengths > 0).all()):
            raise SpgError(
                f"Layer {name}: the guides came to nothing (lengths "
                f"{', '.join(f'{length:.3g}' for length in lengths.tolist())}). "
                "Lower guides.lr or guides.sparsity, or train for fewer epochs."
            )


def _finished(trainer: GuideTrainer) -> LayerGuides:
    return LayerGuides.from_codes(
        trainer.result.cpu(),
        trainer.atoms.cpu(),
        trainer.dead.cpu(),
        trainer.params.top_k,
        trainer.grid,
    )

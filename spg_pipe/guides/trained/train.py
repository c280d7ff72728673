"""Fit the guides of every layer on a store's tokens and masks; backbone and SAE stay frozen.

Several runs (seeds, settings) train on the same batches: the store is read once for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.errors import SpgError, counted
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.model import initial_codes
from spg_pipe.guides.trained.progress import Training
from spg_pipe.guides.trained.trainer import PUBLISHED, Constants, GuideTrainer
from spg_pipe.recipe.params import MethodParams
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.masks import mask_losses
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_batches, labelled_images, sources_of

Progress = Callable[[int, int, float | None], None]
"""images done, images in all, loss where there is one."""


@dataclass(frozen=True)
class GuideRun:
    """One training: what differs between runs that are fitted together."""

    saes: SaeRun
    """Only their dictionaries and dead masks are used."""
    guides: TrainedGuides
    seed: int
    """Of the initial codes, and of the images' order unless `guides` say otherwise."""
    constants: Constants = PUBLISHED

    @property
    def order(self) -> int:
        """Seed of the images' order."""
        return self.seed if self.guides.order_seed is None else self.guides.order_seed

    @property
    def stream(self) -> tuple[int, int, int]:
        """Runs with the same value see the same batches, and can be fitted together."""
        return self.order, self.guides.epochs, self.constants.batch_images

    def settings(self) -> dict[str, object]:
        """All that sets it apart from others on its store: part of a checkpoint's fingerprint."""
        return {
            "sae": self.saes.record.fingerprint,
            # The same settings elsewhere make a dictionary of other bits.
            "dictionary": self.saes.digest(),
            "guides": self.guides.content() | asdict(self.constants),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class GuideFit:
    """A finished run."""

    trainers: dict[str, GuideTrainer]
    """Layer → at its last step; `result` holds the codes."""
    curve: list[dict[str, float]]
    """A row an epoch: mean losses and positive codes, over layers."""


def fit_guides(
    store: FeatureStore,
    runs: Sequence[GuideRun],
    method: MethodParams,
    *,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[GuideFit]:
    """Train four guides for every layer and run, in one pass over the store an epoch.

    Every run gets to the bit what it would get alone.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary dataset, with masks.
    runs : sequence of GuideRun
        With the same `stream`: order of the images, epochs and images a batch.
    progress : callable
        Told the loss of the epoch so far, the mean over runs.
    checkpoints : Checkpoints, optional
        A killed training goes on from there and ends with the same bits. Removing the last
        checkpoint is for the caller, when the results are safe.

    Raises
    ------
    SpgError
        If an SAE does not belong to the store, there is nothing to learn from, runs do not fit
        together, or a loss is not finite.
    """
    _check(store, runs)
    order, epochs, batch_images = runs[0].stream
    training = Training(_trainers(store, runs, method, device), [run.seed for run in runs])
    key = run_fingerprint(store, runs, method)
    if checkpoints and (saved := checkpoints.load(key)):
        training.restore(*saved)
    sources = sources_of(store, device, cache)
    images = len(labelled_images(store))
    for epoch in range(training.epoch, epochs):
        batches = image_batches(
            sources, batch_images, seed=order, epoch=epoch, start=training.batch
        )
        for batch in batches:
            looked = training.step(batch)
            if progress and looked:
                done = min(training.batch * batch_images, images)
                progress(epoch * images + done, epochs * images, training.loss)
            if checkpoints and checkpoints.due():
                checkpoints.save(key, *training.saved())
        training.end_epoch()
    return [
        GuideFit(trainers, curve)
        for trainers, curve in zip(training.runs, training.curves, strict=True)
    ]


def run_fingerprint(store: FeatureStore, runs: Sequence[GuideRun], method: MethodParams) -> str:
    """Of a training's inputs and settings, for its checkpoints."""
    content = {
        "kind": "guide training",
        "store": store.fingerprint,
        "method": method.model_dump(mode="json"),
        "protocol": protocol(method.protocol).to_dict(),
        "runs": [run.settings() for run in runs],
    }
    return fingerprint(content)


def _trainers(
    store: FeatureStore, runs: Sequence[GuideRun], method: MethodParams, device: str
) -> list[dict[str, GuideTrainer]]:
    """A trainer a layer for every run; runs of one SAE share its dictionary."""
    atoms = {
        (id(run.saes), layer): run.saes.layers[layer].atoms.detach().to(device)
        for run in {id(run.saes): run for run in runs}.values()
        for layer in store.layers
    }
    return [
        {
            layer: GuideTrainer.start(
                initial_codes(len(run.saes.dead[layer]), run.seed).to(device),
                atoms[id(run.saes), layer],
                run.saes.dead[layer].to(device),
                shape.grid,
                run.guides,
                method,
                run.constants,
            )
            for layer, shape in store.spec.layers.items()
        }
        for run in runs
    ]


def training_notes(store: FeatureStore) -> list[str]:
    """What training on a store leaves out, and what teaches no defect: a sentence each."""
    notes = []
    if left_out := len(store) - len(labelled_images(store)):
        notes.append(
            f"{counted(left_out, 'image')} of {len(store)} left out of guide training: a defect "
            "without a mask, or no label"
        )
    losses = mask_losses(store)
    if blank := len(losses.empty) + len(losses.vanished):
        notes.append(
            f"{counted(blank, 'anomalous image')} without an anomalous pixel at "
            f"{store.image_size}×{store.image_size} in training, where every pixel counts as "
            f"normal (mask empty: {len(losses.empty)}, vanished in resizing: "
            f"{len(losses.vanished)})"
        )
    return notes


def _check(store: FeatureStore, runs: Sequence[GuideRun]) -> None:
    """Refuse runs that cannot be trained on a store, or not together."""
    if len({run.stream for run in runs}) != 1:
        found = ", ".join(map(str, sorted({run.stream for run in runs}))) or "no run"
        raise SpgError(
            "Runs that train together need the same order of images, epochs and images a batch; "
            f"found {found}. Train them one by one."
        )
    for run in runs:
        check_sae(store, run.saes)
    check_images(store)


def check_sae(store: FeatureStore, saes: SaeRun) -> None:
    """Refuse an SAE of another store."""
    found = saes.record.store
    if found != store.fingerprint:
        raise SpgError(
            f"The SAE was trained on another store than {store.path} (dataset "
            f"{saes.record.dataset!r} against {store.spec.dataset!r}, fingerprints {found[:8]} "
            f"and {store.fingerprint[:8]}). Run `spg-pipe train-sae` again for this store."
        )


def check_images(store: FeatureStore) -> None:
    """Refuse a store without an anomalous pixel to learn from."""
    images = labelled_images(store)
    labels = store.array("label")[images]
    if not (labels == 1).any():
        raise SpgError(
            f"{store.path} has no anomalous image with a mask; guides need some. "
            "Use a labelled auxiliary dataset."
        )
    losses = mask_losses(store)
    blank, size = len(losses.empty) + len(losses.vanished), store.image_size
    if blank == (labels == 1).sum():
        raise SpgError(
            f"{store.path}: none of the {blank} anomalous images with a mask has an anomalous "
            f"pixel at {size}×{size} (mask empty: {len(losses.empty)}, vanished in resizing: "
            f"{len(losses.vanished)}), so guides have no defect to learn. Correct the masks "
            "(values above 0 are defect), or extract at a larger backbone.image_size."
        )

"""Fit the guides of every layer on a store's tokens and masks; backbone and SAE stay frozen.

Several runs (seeds, settings) train on the same batches: the store is read once for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artefacts.checkpoint import Checkpoints, Saved, State, below
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.errors import SpgError, counted
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.model import initial_codes
from spg_pipe.guides.trained.losses import PixelTarget
from spg_pipe.guides.trained.trainer import PUBLISHED, Constants, GuideLosses, GuideTrainer
from spg_pipe.recipe.params import MethodParams
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.masks import mask_losses, mask_notes
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import ImageBatch, image_batches, labelled_images, sources_of

Progress = Callable[[int, int, float | None], None]
"""images done, images in all, loss where there is one."""
Point = Callable[[int, dict[str, float]], None]
"""which of the runs, a row of its curve: told as it is made. A training that goes on begins with
those that it had."""


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
    def stream(self) -> tuple[int, int, int]:
        """Order of the images, epochs, images a batch: what runs that are fitted together share."""
        order = self.seed if self.guides.order_seed is None else self.guides.order_seed
        return order, self.guides.epochs, self.constants.batch_images


class GuideFit(NamedTuple):
    """A run, as far as it is."""

    trainers: dict[str, GuideTrainer]
    """By layer."""
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
    point: Point = lambda number, row: None,
) -> list[GuideFit]:
    """Train four guides for every layer and run, in one pass over the store an epoch.

    Every run gets to the bit what it would get alone. An `SpgError` if an SAE does not belong to
    the store, there is nothing to learn from, runs do not fit together, or a loss is not finite.

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
    """
    if len({run.stream for run in runs}) != 1:
        streams = ", ".join(map(str, sorted({run.stream for run in runs}))) or "no run"
        raise SpgError(
            "Runs that train together need the same order of images, epochs and images a batch; "
            f"found {streams}. Train them one by one."
        )
    for run in runs:
        check_sae(store, run.saes)
    check_images(store)
    order, epochs, batch_images = runs[0].stream
    training = Training(store, runs, method, device, point)
    key = run_fingerprint(store, runs, method)
    if checkpoints and (saved := checkpoints.load(key)):
        training.restore(*saved)
    sources = sources_of(store, device, cache)
    images = len(labelled_images(store))
    for epoch in range(training.epoch, epochs):
        given = {"seed": order, "epoch": epoch, "start": training.batch}
        for batch in image_batches(sources, batch_images, **given):
            looked = training.step(batch)
            if progress and looked:
                done = min(training.batch * batch_images, images)
                progress(epoch * images + done, epochs * images, training.loss)
            if checkpoints and checkpoints.due():
                checkpoints.save(key, *training.saved())
        training.end_epoch()
    return training.fits


def run_fingerprint(store: FeatureStore, runs: Sequence[GuideRun], method: MethodParams) -> str:
    """Of a training's inputs and settings, for its checkpoints."""
    content = {
        "kind": "guide training",
        "store": store.fingerprint,
        "method": method.model_dump(mode="json"),
        "protocol": protocol(method.protocol).to_dict(),
        "runs": [
            {
                "sae": run.saes.record.fingerprint,
                # The same settings elsewhere make a dictionary of other bits.
                "dictionary": run.saes.digest(),
                "guides": run.guides.content() | asdict(run.constants),
                "seed": run.seed,
            }
            for run in runs
        ],
    }
    return fingerprint(content)


class Training:
    """Runs that train on the same batches: trainers, losses so far and curves."""

    def __init__(
        self,
        store: FeatureStore,
        runs: Sequence[GuideRun],
        method: MethodParams,
        device: str,
        point: Point,
    ) -> None:
        self.point, self.seeds = point, [run.seed for run in runs]
        self.layers = list(store.layers)
        self.fits = [GuideFit({}, []) for _ in runs]
        for layer, shape in store.spec.layers.items():
            # Runs of one SAE share its dictionary.
            atoms = {id(run.saes): run.saes.layers[layer].atoms.detach() for run in runs}
            atoms = {key: value.to(device) for key, value in atoms.items()}
            for run, fit in zip(runs, self.fits, strict=True):
                dead = run.saes.dead[layer]
                fit.trainers[layer] = GuideTrainer(
                    initial_codes(len(dead), run.seed).to(device),
                    atoms[id(run.saes)],
                    dead.to(device),
                    shape.grid,
                    run.guides,
                    method,
                    run.constants,
                )
        self.epoch = 0
        """Epochs done."""
        self.batch = 0
        """Batches done in this epoch."""
        self.steps = 0
        self.sums = np.zeros((len(runs), len(GuideLosses._fields)))
        """Losses of this epoch, over batches."""
        self._unseen: list[Tensor] = []
        self._every = 1 if device == "cpu" else 16
        """Steps between two looks at the losses: a GPU would have to be waited for each time."""

    @property
    def loss(self) -> float:
        """Mean total loss of this epoch so far."""
        return float(self.sums[:, 0].mean() / self.batch)

    def step(self, batch: ImageBatch) -> bool:
        """A step of every run and layer; whether `loss` now counts this batch.

        An `SpgError` if a loss was not finite in one of the last few steps.
        """
        targets: dict[tuple[int, int], PixelTarget] = {}
        losses = []
        for layer in self.layers:
            trainers = [fit.trainers[layer] for fit in self.fits]
            ready = trainers[0].batch(batch.tokens[layer], batch.labels, batch.masks, targets)
            losses += [torch.stack(trainer.step(ready)).detach() for trainer in trainers]
        self._unseen.append(torch.stack(losses))
        self.batch, self.steps = self.batch + 1, self.steps + 1
        if len(self._unseen) < self._every:
            return False
        self._look()
        return True

    def end_epoch(self) -> None:
        """A row of every curve; the next epoch begins."""
        self._look()
        for number, (fit, sums) in enumerate(zip(self.fits, self.sums, strict=True)):
            positive = [float((each.codes > 0).float().mean()) for each in fit.trainers.values()]
            means = dict(zip(GuideLosses._fields, (sums / self.batch).tolist(), strict=True))
            row = {"epoch": self.epoch + 1, **means, "positive_codes": float(np.mean(positive))}
            fit.curve.append(row)
            self.point(number, row)
        self.epoch, self.batch = self.epoch + 1, 0
        self.sums[:] = 0

    def saved(self) -> Saved:
        """Everything that changes, for a checkpoint."""
        self._look()
        tensors = {
            f"{number}.{layer}.{name}": value
            for number, fit in enumerate(self.fits)
            for layer, trainer in fit.trainers.items()
            for name, value in trainer.state().items()
        }
        state = {name: getattr(self, name) for name in ("epoch", "batch", "steps")}
        curves = [fit.curve for fit in self.fits]
        return tensors, state | {"sums": self.sums.tolist(), "curves": curves}

    def restore(self, tensors: dict[str, Tensor], state: State) -> None:
        """Go on from what `saved` gave."""
        for number, fit in enumerate(self.fits):
            fit.curve.extend(state["curves"][number])
            for row in fit.curve:
                self.point(number, row)
            for layer, trainer in fit.trainers.items():
                trainer.restore(below(tensors, f"{number}.{layer}."))
        self.epoch, self.batch, self.steps = state["epoch"], state["batch"], state["steps"]
        self.sums = np.array(state["sums"])

    def _look(self) -> None:
        """Count the losses since the last look, and stop at the first that is not finite."""
        first = self.steps - len(self._unseen) + 1
        for number, losses in enumerate(self._unseen, first):
            by_layer = losses.cpu().numpy().reshape(len(self.layers), len(self.fits), -1)
            for layer, values in zip(self.layers, by_layer, strict=True):
                finite = np.isfinite(values).all(axis=1)
                if not finite.all():
                    raise SpgError(
                        f"The guides' loss is not finite in epoch {self.epoch + 1}, step {number} "
                        f"(layer {layer}, seed {self.seeds[finite.argmin()]}). Check the tokens "
                        "with `spg-pipe inspect STORE`, or use guides.kind: contrast."
                    )
                self.sums += values / len(self.layers)
        self._unseen.clear()


def training_notes(store: FeatureStore) -> list[str]:
    """What training on a store leaves out, and what teaches no defect: a sentence each."""
    notes = mask_notes(store)
    if left_out := len(store) - len(labelled_images(store)):
        notes.append(
            f"{counted(left_out, 'image')} of {len(store)} left out of guide training: a defect "
            "without a mask, or no label"
        )
    return notes


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
    losses, size = mask_losses(store), store.image_size
    empty, vanished = len(losses.empty), len(losses.vanished)
    if empty + vanished == (labels == 1).sum():
        raise SpgError(
            f"{store.path}: none of the {empty + vanished} anomalous images with a mask has an "
            f"anomalous pixel at {size}×{size} (mask empty: {empty}, vanished in resizing: "
            f"{vanished}), so guides have no defect to learn. Correct the masks (values above 0 "
            "are defect), or extract at a larger backbone.image_size."
        )

"""Where a guide training is: its trainers, losses so far and curves; saved and restored."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artefacts.checkpoint import Saved, State, below
from spg_pipe.errors import SpgError
from spg_pipe.guides.trained.pixels import PixelTarget
from spg_pipe.guides.trained.trainer import GuideLosses, GuideTrainer, LayerBatch
from spg_pipe.store.stream import ImageBatch


class Training:
    """Runs that train on the same batches.

    Parameters
    ----------
    runs : list of dict of layer → GuideTrainer
    seeds : sequence of int
        Of the runs, for messages.
    """

    def __init__(self, runs: list[dict[str, GuideTrainer]], seeds: Sequence[int]) -> None:
        self.runs = runs
        self.seeds = seeds
        self.layers = list(runs[0])
        self.epoch = 0
        """Epochs done."""
        self.batch = 0
        """Batches done in this epoch."""
        self.steps = 0
        self.sums = np.zeros((len(runs), len(GuideLosses._fields)))
        """Losses of this epoch, over batches."""
        self.curves: list[list[dict[str, float]]] = [[] for _ in runs]
        self._unseen: list[Tensor] = []
        self._every = 1 if runs[0][self.layers[0]].codes.device.type == "cpu" else 16
        """Steps between two looks at the losses: a GPU would have to be waited for each time."""

    @property
    def loss(self) -> float:
        """Mean total loss of this epoch so far."""
        return float(self.sums[:, 0].mean() / self.batch)

    def step(self, batch: ImageBatch) -> bool:
        """A step of every run and layer; whether `loss` now counts this batch.

        Raises
        ------
        SpgError
            If a loss was not finite in one of the last few steps.
        """
        targets: dict[tuple[int, int], PixelTarget] = {}
        losses = []
        for layer in self.layers:
            first = self.runs[0][layer]
            if first.grid not in targets:
                targets[first.grid] = first.target(batch.masks)
            ready = LayerBatch.of(
                batch.tokens[layer], batch.labels, targets[first.grid], first.method
            )
            losses += [torch.stack(run[layer].step(ready)).detach() for run in self.runs]
        self._unseen.append(torch.stack(losses))
        self.batch, self.steps = self.batch + 1, self.steps + 1
        if len(self._unseen) < self._every:
            return False
        self._look()
        return True

    def end_epoch(self) -> None:
        """A row of every curve; the next epoch begins."""
        self._look()
        for run, sums, curve in zip(self.runs, self.sums, self.curves, strict=True):
            positive = [float((trainer.codes > 0).float().mean()) for trainer in run.values()]
            means = dict(zip(GuideLosses._fields, (sums / self.batch).tolist(), strict=True))
            curve.append(
                {"epoch": self.epoch + 1, **means, "positive_codes": float(np.mean(positive))}
            )
        self.epoch, self.batch = self.epoch + 1, 0
        self.sums[:] = 0

    def saved(self) -> Saved:
        """Everything that changes, for a checkpoint."""
        self._look()
        tensors: dict[str, Tensor] = {}
        for number, run in enumerate(self.runs):
            for layer, trainer in run.items():
                prefix = f"{number}.{layer}."
                tensors |= {prefix + name: value for name, value in trainer.state().items()}
        state = {"epoch": self.epoch, "batch": self.batch, "steps": self.steps}
        return tensors, state | {"sums": self.sums.tolist(), "curves": self.curves}

    def restore(self, tensors: dict[str, Tensor], state: State) -> None:
        """Go on from what `saved` gave."""
        for number, run in enumerate(self.runs):
            for layer, trainer in run.items():
                trainer.restore(below(tensors, f"{number}.{layer}."))
        self.epoch, self.batch, self.steps = state["epoch"], state["batch"], state["steps"]
        self.sums, self.curves = np.array(state["sums"]), state["curves"]

    def _look(self) -> None:
        """Count the losses since the last look, and stop at the first that is not finite."""
        if not self._unseen:
            return
        steps = torch.stack(self._unseen).cpu().numpy()
        self._unseen.clear()
        for number, losses in enumerate(steps, self.steps - len(steps) + 1):
            by_layer = losses.reshape(len(self.layers), len(self.runs), -1)
            for layer, values in zip(self.layers, by_layer, strict=True):
                if not np.isfinite(values).all():
                    self._stop(layer, values, number)
                self.sums += values / len(self.layers)

    def _stop(self, layer: str, values: np.ndarray, step: int) -> None:
        run = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise SpgError(
            f"The guides' loss is not finite in epoch {self.epoch + 1}, step {step} "
            f"(layer {layer}, seed {self.seeds[run]}). Check the tokens with "
            "`spg-pipe inspect STORE`, or use guides.kind: contrast."
        )

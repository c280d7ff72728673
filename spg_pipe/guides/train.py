"""Fit the guides of every layer on a store's tokens and masks; backbone and SAE stay frozen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.datasets.listing import counted
from spg_pipe.errors import SpgError
from spg_pipe.guides.losses import detection_loss, segmentation_loss, sparsity_loss
from spg_pipe.guides.model import (
    anomaly_probability,
    detection_feature,
    effective_codes,
    guide_vectors,
    initial_codes,
    to_grid,
    training_cosines,
    upsample,
)
from spg_pipe.params import GuideParams, MethodParams
from spg_pipe.protocol import Protocol, protocol
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.trainer import BETAS
from spg_pipe.store.masks import mask_losses
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_batches, labelled_images, sources_of

Progress = Callable[[int, int, float], None]
"""images done, images in all, loss."""


class GuideLosses(NamedTuple):
    """Scalars of one batch; `total` is their sum."""

    total: Tensor
    detection: Tensor
    segmentation: Tensor
    sparsity: Tensor


@dataclass
class GuideTrainer:
    """The codes of one layer with their optimiser and moving average."""

    codes: Tensor
    """(4, C) raw codes, a leaf that requires a gradient."""
    atoms: Tensor
    """(C, D) normalised dictionary."""
    dead: Tensor
    """(C,) bool."""
    grid: tuple[int, int]
    optimizer: torch.optim.Optimizer
    params: GuideParams
    method: MethodParams
    settings: Protocol
    ema: Tensor | None = None
    updates: int = 0

    @classmethod
    def start(
        cls,
        codes: Tensor,
        atoms: Tensor,
        dead: Tensor,
        grid: tuple[int, int],
        params: GuideParams,
        method: MethodParams,
    ) -> "GuideTrainer":
        """A trainer at step 0."""
        leaf = codes.clone().requires_grad_()
        optimizer = torch.optim.Adam([leaf], lr=params.lr, betas=BETAS)
        settings = protocol(method.protocol)
        return cls(leaf, atoms, dead, grid, optimizer, params, method, settings)

    @property
    def result(self) -> Tensor:
        """The averaged codes (4, C); the initial ones before the first step."""
        return self.codes.detach() if self.ema is None else self.ema

    def losses(self, tokens: Tensor, labels: Tensor, masks: Tensor) -> GuideLosses:
        """Losses of one batch (docs/method.md §3).

        Parameters
        ----------
        tokens : (B, 1 + N, D) float32
        labels : (B,) int64
        masks : (B, S, S) float32 in {0, 1}
        """
        effective = effective_codes(self.codes, self.dead, self.params.top_k)
        guides = guide_vectors(effective, self.atoms)
        feature = detection_feature(
            tokens,
            self.method.detection,
            first_image=self.settings.mean_token_of_first_image,
        )
        detection = detection_loss(training_cosines(feature, guides[:2]), labels)
        local = training_cosines(tokens[:, 1:], guides[2:])
        anomaly, normal = (
            upsample(
                to_grid(anomaly_probability(similarity, self.method.tau), self.grid),
                (masks.shape[1], masks.shape[2]),
            )
            for similarity in (local, local.flip(-1))
        )
        segmentation = segmentation_loss(
            anomaly, normal, masks, single_image_by_row=self.settings.single_image_dice_by_row
        ).total
        sparsity = detection.new_zeros(())
        if self.params.top_k is None:
            sparsity = self.params.sparsity * sparsity_loss(effective)
        return GuideLosses(detection + segmentation + sparsity, detection, segmentation, sparsity)

    def step(self, tokens: Tensor, labels: Tensor, masks: Tensor) -> GuideLosses:
        """One Adam step and the update of the moving average."""
        result = self.losses(tokens, labels, masks)
        self.optimizer.zero_grad(set_to_none=True)
        result.total.backward()
        self.optimizer.step()
        self._average()
        return result

    @torch.no_grad()
    def _average(self) -> None:
        if self.ema is None:
            self.ema = self.codes.detach().clone()
            return
        self.updates += 1
        decay = self.params.ema_decay
        if self.settings.ema_warmup:
            # 0.999 alone needs thousands of steps to forget the initial codes.
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.ema += (1 - decay) * (self.codes - self.ema)


def fit_guides(
    store: FeatureStore,
    saes: SaeRun,
    params: GuideParams,
    method: MethodParams,
    *,
    seed: int,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
) -> tuple[dict[str, GuideTrainer], list[dict[str, float]]]:
    """Train four guides for every layer in one pass over the store an epoch.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary dataset, with masks.
    saes : SaeRun
        Its SAEs; only their dictionaries and dead masks are used.

    Returns
    -------
    trainers : dict of layer → GuideTrainer
        At their last step; `result` holds the codes.
    curve : list of dict
        A row an epoch: mean losses and active codes, over layers.

    Raises
    ------
    SpgError
        If the SAE does not belong to the store, or there is nothing to learn from.
    """
    _check(store, saes)
    images = labelled_images(store)
    trainers = {
        layer: GuideTrainer.start(
            initial_codes(len(saes.dead[layer]), seed).to(device),
            saes.layers[layer].atoms.detach().to(device),
            saes.dead[layer].to(device),
            shape.grid,
            params,
            method,
        )
        for layer, shape in store.spec.layers.items()
    }
    sources = sources_of(store, device, cache)
    total = params.epochs * len(images)
    done = 0
    curve: list[dict[str, float]] = []
    for epoch in range(params.epochs):
        sums = np.zeros(4)
        batches = 0
        for batch in image_batches(sources, params.batch_images, seed=seed, epoch=epoch):
            for layer, trainer in trainers.items():
                result = trainer.step(batch.tokens[layer], batch.labels, batch.masks)
                sums += torch.stack(result).detach().cpu().numpy() / len(trainers)
            batches += 1
            done += len(batch.images)
            if progress:
                progress(done, total, float(sums[0] / batches))
        curve.append(_curve_row(epoch, sums / batches, trainers))
        if not np.isfinite(sums).all():
            raise SpgError(f"The guides' loss is not finite in epoch {epoch + 1}. Lower guides.lr.")
    return trainers, curve


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


def _curve_row(
    epoch: int, means: np.ndarray, trainers: dict[str, GuideTrainer]
) -> dict[str, float]:
    active = np.mean([float((t.codes > 0).float().mean()) for t in trainers.values()])
    names = ("total", "detection", "segmentation", "sparsity")
    return {
        "epoch": epoch + 1,
        **dict(zip(names, means.tolist(), strict=True)),
        "positive_codes": float(active),
    }


def _check(store: FeatureStore, saes: SaeRun) -> None:
    found = saes.config["inputs"]["store"]
    if found != store.fingerprint:
        raise SpgError(
            f"The SAE was trained on another store than {store.path} (dataset "
            f"{saes.config['dataset']!r} against {store.spec.dataset!r}, fingerprints {found[:8]} "
            f"and {store.fingerprint[:8]}). Run `spg-pipe train-sae` again for this store."
        )
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

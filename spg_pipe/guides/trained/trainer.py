"""One step of guide training: a batch prepared once, losses, Adam, the moving average."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.artefacts.checkpoint import below
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.model import (
    TAU,
    detection_feature,
    effective_codes,
    guide_vectors,
    lengths,
    token_products,
    unit,
)
from spg_pipe.guides.trained.losses import detection_loss, segmentation_loss, sparsity_loss
from spg_pipe.guides.trained.pixels import PixelTarget
from spg_pipe.recipe.params import MethodParams
from spg_pipe.recipe.protocol import Protocol, protocol
from spg_pipe.sae.trainer import BETAS


@dataclass(frozen=True)
class Constants:
    """Numbers of the published training (docs/method.md §3)."""

    tau: float = TAU
    lr: float = 1e-2
    ema_decay: float = 0.999
    sparsity: float = 1e-3
    """Weight of the codes' mean L1, where `top_k` is not set."""
    batch_images: int = 8


PUBLISHED = Constants()


class GuideLosses(NamedTuple):
    """Scalars of one batch; `total` is their sum."""

    total: Tensor
    detection: Tensor
    segmentation: Tensor
    sparsity: Tensor


@dataclass(frozen=True)
class LayerBatch:
    """A batch of one layer with all that does not depend on the guides.

    It serves every run that trains on it.
    """

    tokens: Tensor
    """(B, 1 + N, D) float32, as they are in the store."""
    lengths: Tensor
    """(B, 1 + N) of the tokens."""
    feature: Tensor
    """(B, D): what the global guides see."""
    labels: Tensor
    """(B,) int64."""
    target: PixelTarget

    @classmethod
    def of(
        cls, tokens: Tensor, labels: Tensor, target: PixelTarget, method: MethodParams
    ) -> "LayerBatch":
        """Of tokens (B, 1 + N, D), labels (B,) and the masks for the layer's grid."""
        first = protocol(method.protocol).mean_token_of_first_image
        feature = detection_feature(tokens, method.detection, first_image=first)
        return cls(tokens, lengths(tokens), feature, labels, target)

    def logits(self, guides: Tensor, tau: float) -> Tensor:
        """(cosine with the anomaly − cosine with the normal guide)/τ of patches, (B, h, w).

        Parameters
        ----------
        guides : (2, D)
            Unit vectors: local-normal, local-anomaly.
        """
        # One product over all tokens, CLS too: leaving it out would copy the batch.
        products = token_products(self.tokens, guides)
        similarity = products[:, 1:] / self.lengths[:, 1:, None]
        difference = (similarity[..., 1] - similarity[..., 0]) / tau
        return difference.unflatten(1, self.target.grid)


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
    top_k: int | None
    method: MethodParams
    constants: Constants
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
        guides: TrainedGuides,
        method: MethodParams,
        constants: Constants = PUBLISHED,
    ) -> "GuideTrainer":
        """A trainer at step 0."""
        leaf = codes.clone().requires_grad_()
        optimizer = torch.optim.Adam([leaf], lr=constants.lr, betas=BETAS)
        settings = protocol(method.protocol)
        return cls(leaf, atoms, dead, grid, optimizer, guides.top_k, method, constants, settings)

    @property
    def result(self) -> Tensor:
        """The averaged codes (4, C); the initial ones before the first step."""
        return self.codes.detach() if self.ema is None else self.ema

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on: a checkpoint's tensors, not copied."""
        found = {"codes": self.codes.detach(), "updates": torch.tensor(self.updates)}
        if self.ema is not None:
            found["ema"] = self.ema
        adam = self.optimizer.state.get(self.codes, {})
        return found | {f"adam.{name}": value for name, value in adam.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        device = self.codes.device
        with torch.no_grad():
            self.codes.copy_(tensors["codes"])
        self.ema = tensors["ema"].to(device, copy=True) if "ema" in tensors else None
        self.updates = int(tensors["updates"])
        adam = {name: value.clone() for name, value in below(tensors, "adam.").items()}
        # Through the optimiser, which keeps its count of steps where it wants it.
        groups = self.optimizer.state_dict()["param_groups"]
        state = {0: adam} if adam else {}
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def batch(self, tokens: Tensor, labels: Tensor, masks: Tensor) -> LayerBatch:
        """Prepare a batch for this trainer, or others of its layer, grid and method.

        Parameters
        ----------
        tokens : (B, 1 + N, D) float32
        labels : (B,) int64
        masks : (B, S, S) float32 in {0, 1}
        """
        return LayerBatch.of(tokens, labels, self.target(masks), self.method)

    def target(self, masks: Tensor) -> PixelTarget:
        """Masks (B, S, S) for this trainer's grid and protocol."""
        by_row = self.settings.single_image_dice_by_row
        return PixelTarget.of(masks, self.grid, single_image_by_row=by_row)

    def losses(self, batch: LayerBatch) -> GuideLosses:
        """Losses of one batch (docs/method.md §3)."""
        effective = effective_codes(self.codes, self.dead, self.top_k)
        guides = guide_vectors(effective, self.atoms)
        # A token an image: the published operations cost nothing here and give its very bits.
        similarity = F.cosine_similarity(batch.feature[:, None], guides[None, :2], dim=-1)
        detection = detection_loss(similarity, batch.labels)
        logits = batch.logits(unit(guides[2:]), self.constants.tau)
        segmentation = segmentation_loss(logits, batch.target).total
        sparsity = detection.new_zeros(())
        if self.top_k is None:
            sparsity = self.constants.sparsity * sparsity_loss(effective)
        return GuideLosses(detection + segmentation + sparsity, detection, segmentation, sparsity)

    def step(self, batch: LayerBatch) -> GuideLosses:
        """One Adam step and the update of the moving average."""
        result = self.losses(batch)
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
        decay = self.constants.ema_decay
        if self.settings.ema_warmup:
            # 0.999 alone needs thousands of steps to forget the initial codes.
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.ema += (1 - decay) * (self.codes - self.ema)

"""One step of guide training: a batch prepared once, losses, Adam, the moving average."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.model import (
    TAU,
    TokenProducts,
    detection_feature,
    effective_codes,
    lengths,
    unit,
)
from spg_pipe.guides.trained.losses import PixelTarget, segmentation_loss
from spg_pipe.recipe.params import MethodParams
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.trainer import BETAS, adam_state, restore_adam


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


class GuideTrainer:
    """The codes of one layer with their optimiser and moving average, at step 0.

    Parameters
    ----------
    codes : (4, C)
        Raw codes to begin with.
    atoms : (C, D)
        Normalised dictionary.
    dead : (C,) bool
    grid : (h, w)
        Patches of the layer.
    """

    codes: Tensor
    """(4, C) raw codes, a leaf that requires a gradient."""
    ema: Tensor
    """(4, C) their moving average, which is the result; the initial codes before the first step."""
    steps: int

    def __init__(
        self,
        codes: Tensor,
        atoms: Tensor,
        dead: Tensor,
        grid: tuple[int, int],
        guides: TrainedGuides,
        method: MethodParams,
        constants: Constants = PUBLISHED,
    ) -> None:
        self.codes, self.ema, self.steps = codes.clone().requires_grad_(), codes, 0
        self.atoms, self.dead, self.grid, self.top_k = atoms, dead, grid, guides.top_k
        self.detection, self.constants = method.detection, constants
        self.settings = protocol(method.protocol)
        self.optimizer = torch.optim.Adam([self.codes], lr=constants.lr, betas=BETAS)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on: a checkpoint's tensors, not copied."""
        own = {"codes": self.codes.detach(), "ema": self.ema, "steps": torch.tensor(self.steps)}
        return own | adam_state(self.optimizer)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.codes.data.copy_(tensors["codes"])
        self.ema = tensors["ema"].to(self.codes.device, copy=True)
        self.steps = int(tensors["steps"])
        restore_adam(self.optimizer, tensors)

    def batch(
        self,
        tokens: Tensor,
        labels: Tensor,
        masks: Tensor,
        targets: dict[tuple[int, int], PixelTarget] | None = None,
    ) -> LayerBatch:
        """Prepare a batch for this trainer, or others of its layer, grid and method.

        Parameters
        ----------
        tokens : (B, 1 + N, D) float32
        labels : (B,) int64
        masks : (B, S, S) float32 in {0, 1}
        targets : dict of grid → PixelTarget, optional
            What other layers made of these masks; this layer's is added if it is not there.
        """
        targets = {} if targets is None else targets
        if self.grid not in targets:
            by_row = self.settings.single_image_dice_by_row
            targets[self.grid] = PixelTarget.of(masks, self.grid, single_image_by_row=by_row)
        first = self.settings.mean_token_of_first_image
        feature = detection_feature(tokens, self.detection, first_image=first)
        return LayerBatch(tokens, lengths(tokens), feature, labels, targets[self.grid])

    def losses(self, batch: LayerBatch) -> GuideLosses:
        """Losses of one batch (docs/method.md §3)."""
        effective = effective_codes(self.codes, self.dead, self.top_k)
        guides = effective @ self.atoms
        # A token an image: the published operations cost nothing here and give its very bits.
        similarity = F.cosine_similarity(batch.feature[:, None], guides[None, :2], dim=-1)
        detection = F.cross_entropy(similarity, batch.labels)  # raw cosines: no temperature
        # One product over all tokens, CLS too: leaving it out would copy the batch.
        products = TokenProducts.apply(batch.tokens, unit(guides[2:]))
        cosine = products[:, 1:] / batch.lengths[:, 1:, None]
        logits = ((cosine[..., 1] - cosine[..., 0]) / self.constants.tau).unflatten(1, self.grid)
        segmentation = segmentation_loss(logits, batch.target).total
        sparsity = detection.new_zeros(())
        if self.top_k is None:
            sparsity = self.constants.sparsity * effective.abs().sum(dim=1).mean()
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
        if self.steps == 0:
            self.ema = self.codes.detach().clone()
        else:
            decay = self.constants.ema_decay
            if self.settings.ema_warmup:
                # 0.999 alone needs thousands of steps to forget the initial codes.
                decay = min(decay, (1 + self.steps) / (10 + self.steps))
            self.ema += (1 - decay) * (self.codes - self.ema)
        self.steps += 1

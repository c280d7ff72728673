"""The published guide step written out literally: two channels, softmax (docs/method.md §3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.sae import topk_code


class Literal(NamedTuple):
    """Detection, segmentation and sparsity losses of one batch."""

    detection: Tensor
    segmentation: Tensor
    sparsity: Tensor


def literal_losses(  # one argument for each symbol of the method
    codes: Tensor,
    dead: Tensor,
    atoms: Tensor,
    tokens: Tensor,
    labels: Tensor,
    masks: Tensor,
    grid: tuple[int, int],
) -> Literal:
    """All losses as the method's text has them, nothing simplified.

    `tokens` (B, 1 + N, D), `labels` (B,), `masks` (B, S, S) in {0, 1}.
    """
    effective = torch.where(dead, torch.zeros_like(codes), codes.relu())
    guides = effective @ atoms
    similarity = F.cosine_similarity(tokens[:, :, None], guides[None, None], dim=-1)
    detection = F.cross_entropy(similarity[:, 0, :2], labels)
    local = torch.softmax(similarity[:, 1:, 2:] / 0.07, dim=-1)
    maps = F.interpolate(
        local.permute(0, 2, 1).reshape(len(tokens), 2, *grid),
        size=masks.shape[-2:],
        mode="bilinear",
        align_corners=False,
    )
    segmentation = focal(maps, masks) + dice(maps[:, 1], masks) + dice(maps[:, 0], 1 - masks)
    return Literal(detection, segmentation, 1e-3 * effective.abs().sum(dim=1).mean())


def focal(maps: Tensor, masks: Tensor) -> Tensor:
    """One-hot target clamped to [1e-5, 1 − 1e-5]; mean of −(1 − pt)² log pt."""
    target = torch.stack([1 - masks, masks], dim=1).clamp(1e-5, 1 - 1e-5)
    pt = (target * maps).sum(dim=1) + 1e-5
    return (-((1 - pt) ** 2) * torch.log(pt)).mean()


def dice(probability: Tensor, mask: Tensor) -> Tensor:
    """1 − (2Σpm + 1)/(Σp + Σm + 1) per image."""
    p, m = probability.flatten(1), mask.flatten(1)
    return (1 - (2 * (p * m).sum(1) + 1) / (p.sum(1) + m.sum(1) + 1)).mean()


@dataclass
class LiteralGuides:
    """Codes, optimiser and moving average of `protocol: spg`, trained as published.

    Every step encodes and decodes all tokens with the frozen SAE, without a gradient, although
    the guides depend on the codes alone.
    """

    codes: Tensor
    encoder: Tensor
    """(C, D)."""
    atoms: Tensor
    """(C, D), rows normalised."""
    dead: Tensor
    k: int
    grid: tuple[int, int]
    ema: Tensor | None = None
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.codes = self.codes.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.codes], lr=1e-2, betas=(0.5, 0.999))

    @torch.no_grad()
    def encode(self, tokens: Tensor) -> Tensor:
        """The dense frozen SAE over all tokens: reconstructions (B, 1 + N, D)."""
        return topk_code(tokens @ self.encoder.t(), self.k) @ self.atoms

    def step(self, tokens: Tensor, labels: Tensor, masks: Tensor) -> Literal:
        """One Adam step and the update of the moving average."""
        self.encode(tokens)
        losses = literal_losses(self.codes, self.dead, self.atoms, tokens, labels, masks, self.grid)
        self.optimizer.zero_grad()
        sum(losses).backward()
        self.optimizer.step()
        with torch.no_grad():
            if self.ema is None:
                self.ema = self.codes.detach().clone()
            else:
                self.ema += 0.001 * (self.codes - self.ema)
        return losses

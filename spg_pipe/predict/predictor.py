"""What judges images: a detector, the backbone that it needs, perhaps a bank of normal images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spg_pipe import backbones
from spg_pipe.backbones.base import Backbone, forward
from spg_pipe.backbones.tiling import check_sides, tiled
from spg_pipe.bank.few_shot import supervision_of
from spg_pipe.bank.fusion import Footing, judge_alone, judge_fused
from spg_pipe.bank.memory import MemoryBank
from spg_pipe.bank.normal_patches import BATCH, Grids, Tokens
from spg_pipe.decision.maps import shown_range
from spg_pipe.detector.judge import Judged, judge
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.explain.explanation import Explanation, explain
from spg_pipe.images.preprocess import preprocess
from spg_pipe.metrics.tables import ZERO_SHOT
from spg_pipe.store.extract import inputs_at_once


@dataclass(frozen=True)
class Predictor:
    """All that a score depends on besides the image."""

    detector: Detector
    backbone: Backbone
    """The detector's, or the same in tiles."""
    device: str = "cpu"
    bank: MemoryBank | None = None
    """Few-shot: of normal images of the target."""
    footing: Footing | None = None
    """What those say of the detector; without it a bank judges alone."""

    def __post_init__(self) -> None:
        self.detector.check_backbone(self.backbone.spec, "The backbone that was loaded")

    @property
    def alone(self) -> bool:
        """Whether the bank judges without the guides."""
        return self.bank is not None and self.footing is None

    @property
    def log_odds(self) -> bool:
        """Whether maps add up log odds; otherwise they are mean probabilities."""
        return self.detector.record.rule.rule == "additive" or self.bank is not None

    @property
    def shown(self) -> tuple[float, float]:
        """Values of a map that get the darkest and the brightest colour of a heat map.

        With a bank, darkest is the most that normal images have, brightest thrice it.
        """
        if self.bank is None:
            return shown_range(log_odds=self.log_odds)
        top = max(self.bank.map_top, 1.0) + (not self.alone)
        return shown_range(log_odds=True, between=(top, 3 * top))

    @property
    def supervision(self) -> str:
        """What scores are based on, besides a labelled auxiliary set; empty if that is all."""
        if self.bank:
            return supervision_of(None if self.alone else self.detector, [self.bank.images])
        supervision = self.detector.supervision
        return "" if supervision == ZERO_SHOT else supervision

    def tokens(self, pixels: Sequence[np.ndarray]) -> tuple[Tokens, Grids]:
        """Layer → (B, 1 + N, D) float32, CLS first, and layer → (h, w); images of any sizes."""
        batch = np.stack([preprocess(image, self.backbone.spec.preprocess) for image in pixels])
        at_once = inputs_at_once(self.backbone.spec, len(batch), self.device)
        output = forward(self.backbone, torch.from_numpy(batch).to(self.device), at_once)
        tokens = {
            layer: torch.cat([value.prefix[:, :1], value.patches], dim=1)
            for layer, value in output.items()
        }
        return tokens, {layer: value.grid for layer, value in output.items()}

    def judge(self, pixels: Sequence[np.ndarray]) -> Judged:
        """Scores and patch grids of some images."""
        return self._judge(*self.tokens(pixels))

    def explain(self, pixels: Sequence[np.ndarray]) -> tuple[Judged, Explanation]:
        """The same, with the scores taken apart; an `SpgError` if a bank judges alone."""
        require_guides(alone=self.alone)
        tokens, grids = self.tokens(pixels)
        judged = self._judge(tokens, grids)
        spec = self.backbone.spec
        return judged, explain(self.detector, tokens, grids, spec, judged=judged)

    def _judge(self, tokens: Tokens, grids: Grids) -> Judged:
        spec = self.backbone.spec
        if self.bank is None:
            return judge(self.detector, tokens, grids, spec, self.detector.record.rule)
        distances = self.bank.distances(tokens)
        if self.footing is None:
            return judge_alone(distances)
        return judge_fused(
            self.detector, distances, tokens, spec, [self.footing] * len(distances.top)
        )


def require_guides(*, alone: bool) -> None:
    """Refuse, with an `SpgError`, to explain what guides take no part in: a bank alone."""
    if alone:
        raise SpgError(
            "A bank alone uses no guides, so there are no atoms to explain its scores with. "
            "Leave out --bank alone."
        )


def load_predictor(
    detector: Detector,
    tiles: Sequence[int],
    weights: Path | None,
    device: str,
    say: Callable[[str], None],
) -> Predictor:
    """A detector with its backbone.

    Parameters
    ----------
    tiles : sequence of int
        Sides in pixels at which images are cut into tiles of the detector's image size; none:
        images are taken whole.
    weights : Path, optional
        A file of the backbone's weights.
    An `SpgError` if the backbone cannot be loaded or is not the detector's, or a side does not fit.
    """
    spec = detector.record.backbone
    if tiles:
        check_sides(tiles, spec)
    backbone = backbones.load_backbone(
        spec.alias,
        image_size=spec.preprocess.size,
        layers=spec.layers,
        norm=spec.norm,
        protocol=detector.record.protocol.name,
        weights=weights,
        device=device,
        say=say,
    )
    if tiles:
        backbone = tiled(backbone, tiles, at_once=inputs_at_once(spec, BATCH, device))
    return Predictor(detector, backbone, device)

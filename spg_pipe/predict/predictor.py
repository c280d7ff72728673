"""What judges images: a detector, the backbone that it needs, perhaps a bank of normal images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spg_pipe import backbones
from spg_pipe.backbones.base import Backbone, LayerTokens, forward
from spg_pipe.backbones.precision import with_precision
from spg_pipe.backbones.tiling import check_sides, tiled
from spg_pipe.bank.fitted import FittedBank
from spg_pipe.bank.normal_patches import BATCH, Grids, Tokens
from spg_pipe.decision.kept import Kept
from spg_pipe.decision.maps import anomaly_maps, shown_range
from spg_pipe.detector.judge import Judged, judge
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.explain.explanation import Explanation, explain
from spg_pipe.images.preprocess import preprocess
from spg_pipe.metrics.tables import ZERO_SHOT
from spg_pipe.store.compute import inputs_at_once


@dataclass(frozen=True)
class Predictor:
    """All that a score depends on besides the image."""

    detector: Detector
    backbone: Backbone
    """The detector's, or the same in tiles."""
    device: str = "cpu"
    bank: FittedBank | None = None
    """Few-shot: of normal images of the target."""
    alone: bool = False
    """The bank judges without the guides."""

    def __post_init__(self) -> None:
        spec = self.backbone.spec
        self.detector.check_backbone(spec, "The backbone that was loaded")
        if self.bank is not None:
            self.bank.require_serving(self.detector, spec, alone=self.alone)

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
        top = max(self.bank.memory.map_top, 1.0) + (not self.alone)
        return shown_range(log_odds=True, between=(top, 3 * top))

    @property
    def supervision(self) -> str:
        """What scores are based on, besides a labelled auxiliary set; empty if that is all."""
        if self.bank:
            return self.bank.supervision(alone=self.alone)
        supervision = self.detector.supervision
        return "" if supervision == ZERO_SHOT else supervision

    @property
    def goods(self) -> int:
        """How many normal images of the target have scores of their own."""
        return len(self.bank.record.scores(alone=self.alone)) if self.bank else 0

    def tokens(self, pixels: Sequence[np.ndarray]) -> tuple[Tokens, Grids]:
        """Layer → (B, 1 + N, D) float32, CLS first, and layer → (h, w); images of any sizes."""
        batch = np.stack([preprocess(image, self.backbone.spec.preprocess) for image in pixels])
        at_once = inputs_at_once(self.backbone.spec, len(batch), self.device)
        return joined_tokens(
            forward(self.backbone, torch.from_numpy(batch).to(self.device), at_once)
        )

    def judge(self, pixels: Sequence[np.ndarray], kept: Sequence[np.ndarray | None] = ()) -> Judged:
        """Scores and patch grids of some images.

        `kept` (S, S) float32 of each: how much each pixel of the square counts; see `View.kept`.
        """
        return self._judge(*self.tokens(pixels), Kept.of(kept))

    def explain(
        self, pixels: Sequence[np.ndarray], kept: Sequence[np.ndarray | None] = ()
    ) -> tuple[Judged, Explanation]:
        """The same, with the scores taken apart; an `SpgError` if a bank judges alone."""
        require_guides(alone=self.alone)
        (tokens, grids), counts = self.tokens(pixels), Kept.of(kept)
        judged = self._judge(tokens, grids, counts)
        spec = self.backbone.spec
        return judged, explain(self.detector, tokens, grids, spec, judged=judged, kept=counts)

    def maps(self, judged: Judged, image: int, kept: np.ndarray | None = None) -> np.ndarray:
        """The finished map of an image of a batch: (S, S) float32 in [0, 1], 0 where ignored."""
        patches = {name: each[image : image + 1] for name, each in judged.patches.items()}
        size = self.backbone.spec.preprocess.size
        return anomaly_maps(patches, size, log_odds=self.log_odds, kept=Kept.of([kept]))[0]

    def _judge(self, tokens: Tokens, grids: Grids, kept: Kept | None) -> Judged:
        spec = self.backbone.spec
        if self.bank is None:
            return judge(self.detector, tokens, grids, spec, self.detector.record.rule, kept)
        return self.bank.judge(tokens, self.detector, spec, alone=self.alone, kept=kept)


def joined_tokens(output: Mapping[str, LayerTokens]) -> tuple[Tokens, Grids]:
    """What a backbone gives as layer → (B, 1 + N, D), CLS first, and layer → (h, w)."""
    tokens = {
        layer: torch.cat([value.prefix[:, :1], value.patches], dim=1)
        for layer, value in output.items()
    }
    return tokens, {layer: value.grid for layer, value in output.items()}


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
    *,
    exact: bool = False,
) -> Predictor:
    """A detector with its backbone.

    An `SpgError` if the backbone cannot be loaded or is not the detector's, or a side does not fit.

    Parameters
    ----------
    tiles : sequence of int
        Sides in pixels at which images are cut into tiles of the detector's image size; none:
        images are taken whole.
    weights : Path, optional
        A file of the backbone's weights.
    exact : bool
        The backbone computes in float32, whatever precision the detector allows.
    """
    spec = detector.record.backbone
    if tiles:
        check_sides(tiles, spec)
    network = backbones.load_backbone(
        spec.alias,
        image_size=spec.preprocess.size,
        layers=spec.layers,
        norm=spec.norm,
        protocol=detector.record.protocol.name,
        weights=weights,
        device=device,
        say=say,
    )
    backbone: Backbone = with_precision(network, spec.precision, device, say, exact=exact)
    if tiles:
        backbone = tiled(backbone, tiles, at_once=inputs_at_once(spec, BATCH, device))
    return Predictor(detector, backbone, device)

"""What a fitted bank says of itself: the JSON in its folder, also of one that is not saved."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from spg_pipe.artefacts.record import Count, Figure, Inside, LayerName, Name, Record, Size
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.bank.fusion import Footing
from spg_pipe.decision.model import Scale
from spg_pipe.recipe.params import BankParams

DEVIATION, ABOVE = "deviation", "normals_above"
"""Columns of `beside`."""
_SMALLEST = 1e-6
"""Standard deviation of the goods' scores, at least."""


class Good(Record):
    """A normal image of the bank."""

    path: Inside
    """Relative to the folder of normal images."""
    sha256: Name
    """Of the file."""
    alone: Figure | None = None
    """Its image score by a bank of the others alone."""
    fused: Figure | None = None
    """The same with the guides. Both are null where too few others are left."""


class BankRecord(Record):
    """config.json of a bank."""

    kind: Literal["bank"] = "bank"
    format: Literal[1] = 1
    detector: Name
    """Fingerprint of the detector that it was fitted beside."""
    backbone: BackboneSpec
    """With its tiles, if images are cut into such."""
    params: BankParams
    white: Annotated[int, Field(ge=1, le=65_535)] | None
    """See `images.reading.read_image`; null where the files say it."""
    fit: Name
    """How images were made square: squashed, letterboxed, cropped."""
    ignored: Name | None
    """Digest of the masks of what does not count; null where all does."""
    supervision: str
    """What scores of bank and guides together saw."""
    grids: dict[LayerName, tuple[Size, Size]]
    """Layer → (h, w) of its patches."""
    scales: dict[LayerName, Scale]
    tops: Annotated[tuple[Figure, ...], Field(min_length=1)]
    footing: Footing | None
    """Null if the detector has no additive decision: the bank judges alone."""
    goods: Annotated[tuple[Good, ...], Field(min_length=1)]
    """The different normal images."""
    copies: Count
    """Further images, left out as copies of these."""
    fingerprint: Name = ""
    versions: dict[Name, Name]
    tensors_sha256: Name = ""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self.backbone.require_layers(self.grids)
        self.backbone.require_layers(self.scales)
        if self.footing:
            self.backbone.require_layers(self.footing.levels)
        for name in ("alone", "fused"):
            if len({getattr(good, name) is None for good in self.goods}) > 1:
                raise ValueError(f"goods: some have a score {name} and others have none")
        return self

    def scores(self, *, alone: bool) -> np.ndarray:
        """(n,) float64, rising: the goods' leave-one-out scores; of too few goods none."""
        scores = [good.alone if alone else good.fused for good in self.goods]
        return np.sort(np.array([score for score in scores if score is not None]))


def beside(goods: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Image scores (B,) beside the leave-one-out scores (n,) of the goods, as columns (B,).

    `deviation`: standard deviations of the goods above their mean. `normals_above`: how many of the
    goods have at least this score. No columns if n < 2.
    """
    if len(goods) < 2:
        return {}
    deviation = max(float(goods.std(ddof=1)), _SMALLEST)
    above = (goods >= scores[:, None]).sum(axis=1)
    return {DEVIATION: (scores - goods.mean()) / deviation, ABOVE: above}

"""What a prediction says of an image: one line of JSON, read back as it was written.

`docs/schemas/prediction-1.json` is the published JSON Schema of a line. A field may be added to it;
one that changes its meaning or goes needs another number.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from spg_pipe.artefacts.record import Count, ImageSide, Record, first_fault
from spg_pipe.bank.normal_patches import KNOWN
from spg_pipe.bank.record import ABOVE, DEVIATION
from spg_pipe.decision.calibration import Limits
from spg_pipe.errors import SpgError
from spg_pipe.predict.regions import PUBLISHED, Found, Region, Unit, regions_of

SCHEMA: Literal["spg-pipe/prediction/1"] = "spg-pipe/prediction/1"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Files(Record):
    """Pictures of an image, relative to the output folder; null where there is none."""

    model_config = PUBLISHED

    overlay: str | None = None
    """The heat map over the image."""
    explanation: str | None = None
    """The picture that says why."""
    map: str | None = None
    """The anomaly map: grey PNG of 16 bits, value · 65535."""
    mask: str | None = None
    """The pixels above the pixel threshold: grey PNG, 255 or 0."""


class Result(Record):
    """What was found in an image. Rows, columns and sizes are pixels of the original image."""

    model_config = PUBLISHED

    schema_version: Literal["spg-pipe/prediction/1"] = Field(default=SCHEMA, alias="schema")
    path: str
    """The image's name, as it was given or found."""
    sha256: Sha256 | None = None
    """Of the image's file, or of a frame's pixels; null of an image in a notebook's memory."""
    group: str = ""
    """The camera or category, whose thresholds apply; empty if there is none."""
    score: float
    """Image score: higher is more anomalous. Not a probability."""
    decision: Literal["normal", "anomalous"] | None = None
    """Whether the score is above the threshold; null if there is none."""
    threshold: float | None = None
    """Of the image score."""
    p_value: Unit | None = None
    """Share of the normal images of a calibration that score as high or higher, the image counted
    as one of them."""
    deviation: float | None = None
    """How far the score is above the mean of your own normal images' (each by a bank of the others
    alone), in their standard deviations."""
    normals_above: Count | None = None
    """How many of your own normal images score as high or higher …"""
    normals: Count | None = None
    """… of how many."""
    parts: dict[str, float]
    """What the score is made of: share_… add up to the score less the detector's bias."""
    height: ImageSide
    width: ImageSide
    peak: Unit
    """The map's highest value."""
    peak_row: Count
    peak_column: Count
    ignored_share: Unit = 0.0
    """Of the image's pixels, those that do not count."""
    pixel_threshold: float | None = None
    """Of the map; without it there are no regions and no mask."""
    regions: tuple[Region, ...] = ()
    """Those with the highest peaks, at most 100."""
    regions_left_out: Count = 0
    """How many more there are; the mask has them all."""
    files: Files = Files()
    protocol: str
    """The method's protocol (docs/method.md §5)."""
    supervision: str = ""
    """What the score is based on besides a labelled auxiliary set; empty if that is all."""
    among_normals: bool | None = None
    """The image is one of the normal images that judge; null if there are none."""


class Failure(Record):
    """An image that could not be judged."""

    model_config = PUBLISHED

    schema_version: Literal["spg-pipe/prediction/1"] = Field(default=SCHEMA, alias="schema")
    path: str
    sha256: Sha256 | None = None
    group: str = ""
    error: Annotated[str, Field(min_length=1)]
    """What is wrong with it, for people."""


def result_of(
    path: str,
    columns: Mapping[str, float],
    anomaly_map: np.ndarray,
    limits: Limits,
    *,
    protocol: str,
    supervision: str = "",
    goods: int = 0,
) -> Result:
    """What is said of an image by its map (H, W) and its values of `Judged.columns`.

    `goods` is how many normal images of a bank have scores of their own. The caller adds what it
    knows besides: the file's digest, group and pictures.
    """
    height, width = anomaly_map.shape
    row, column = divmod(int(anomaly_map.argmax()), width)
    parts = dict(columns)
    score, known, above = parts.pop("score"), parts.pop(KNOWN, None), parts.pop(ABOVE, None)
    image, pixel = limits.image, limits.pixel
    regions, left_out = regions_of(anomaly_map, pixel.value) if pixel else Found((), 0)
    return Result(
        path=path,
        score=score,
        decision=limits.decide(score),
        threshold=image.value if image else None,
        p_value=limits.p_value(score),
        deviation=parts.pop(DEVIATION, None),
        normals_above=None if above is None else int(above),
        normals=None if above is None else goods,
        parts=parts,
        height=height,
        width=width,
        peak=float(anomaly_map[row, column]),
        peak_row=row,
        peak_column=column,
        pixel_threshold=pixel.value if pixel else None,
        regions=regions,
        regions_left_out=left_out,
        protocol=protocol,
        supervision=supervision,
        among_normals=None if known is None else bool(known),
    )


Line = Result | Failure
_LINE: TypeAdapter[Result | Failure] = TypeAdapter(Line)


def line_of(result: Line) -> str:
    """A result as one line of JSON in ASCII, which any stream can hold, without its end."""
    content = result.model_dump(mode="json", by_alias=True)
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def parse_line(line: str | bytes) -> Line:
    """The result in a line of JSON; an `SpgError` says what is wrong with it."""
    try:
        return _LINE.validate_json(line)
    except ValidationError as error:
        raise SpgError(
            f"A line of predictions.jsonl is no {SCHEMA} ({first_fault(error)}). "
            "Run `spg-pipe predict` again."
        ) from error


def row_of(result: Line) -> dict[str, object]:
    """A result as one flat row of a table; what it does not have is left out.

    `regions` is how many there are, and `score_…` and `share_…` have columns of their own.
    """
    row = result.model_dump(exclude={"schema_version", "sha256", "files", "parts", "regions"})
    if isinstance(result, Result):
        row |= result.parts | result.files.model_dump()
        row["regions"] = len(result.regions) + row.pop("regions_left_out")
    return {name: value for name, value in row.items() if value not in (None, "")}


def json_schema() -> str:
    """The JSON Schema (draft 2020-12) of a line, as docs/schemas has it."""
    schema = _LINE.json_schema(by_alias=True, mode="serialization")
    about = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        "title": "A line of predictions.jsonl",
    }
    return json.dumps(about | schema, indent=2, ensure_ascii=False) + "\n"

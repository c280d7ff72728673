"""What a recipe says of its data: sets to make, datasets on disk, directions between them."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    PlainSerializer,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
ModelName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_:@-]+([./][A-Za-z0-9_:@-]+)*$", max_length=200)
]
"""Of a backbone; part of the paths of artefacts, which `..` would lead elsewhere."""
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
"""A hundred times what any recipe here asks for; more would fill the memory or the disk."""
LARGEST_SIDE = 16_384
"""Of an image or tile, pixels: a square of more Pillow takes for an attack."""
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
LARGEST_SEED = 2**32 - 1
"""That the generators of all libraries take."""
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
DefectKind = Literal["perlin", "cut_paste", "scar"]
KINDS: tuple[DefectKind, ...] = get_args(DefectKind)
"""Kinds of painted defects: the keys of `datasets.paint.pasted.PAINTERS`."""


Precision = Annotated[
    Literal["float32", "bfloat16"], Field(exclude_if=lambda value: value == "float32")
]
"""How a network may compute. float32 goes without saying, so that no recipe or record from before
there was a choice has changed."""


def whole_number(text: str) -> int | None:
    """What an option says with digits alone; None for other text, and beyond any count of things.

    Python raises for more than 4,300 digits.
    """
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _no_url(value: object) -> object:
    if "://" in str(value):
        raise ValueError(
            f"a folder of this machine is expected (DVC would ask a host); found {value}"
        )
    return value


Folder = Annotated[Path, BeforeValidator(_no_url)]


def _each_once(kinds: tuple[DefectKind, ...]) -> tuple[DefectKind, ...]:
    if len(set(kinds)) < len(kinds):
        raise ValueError("each kind once is expected")
    return kinds


class Section(BaseModel):
    """No key that is unknown, no number that is none, no change once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DemoSet(Section):
    """A built-in demo set, written by the stage `demo_data`."""

    name: Literal["demo-mvtec", "demo-visa"]
    root: Folder
    seed: Seed = 0


class SyntheticSet(Section):
    """Normal images with painted defects, written by the stage `synthesise`."""

    name: Name
    root: Folder
    source: Folder
    """Folder of normal images."""
    layout: Literal["mvtec", "visa", "folder", "csv", "coco"] = "folder"
    """The source's."""
    split: Literal["test", "train", "all"] = "all"
    """The source's: its normal images are taken."""
    categories: tuple[str, ...] | None = None
    per_image: Positive = 1
    """Anomalous copies of each normal image, one defect each."""
    kinds: Annotated[tuple[DefectKind, ...], Field(min_length=1), AfterValidator(_each_once)] = (
        KINDS
    )
    seed: Seed = 0


def _rows(value: object) -> object:
    """Names with settings below them → rows; a mapping, so that DVC can take none for empty."""
    if not isinstance(value, dict) or not all(
        isinstance(row, dict) and "name" not in row for row in value.values()
    ):
        raise ValueError(
            f"expected names with settings below, as `parts: {{root: …}}`; found {value!r}"[:200]
        )
    return [row | {"name": name} for name, row in value.items()]


def _by_name(rows: tuple[Any, ...], info: FieldSerializationInfo) -> dict[str, object]:
    return {row.name: row.model_dump(mode=info.mode, exclude={"name"}) for row in rows}


BY_NAME = (BeforeValidator(_rows), PlainSerializer(_by_name))
"""Of sets to make: in a recipe a mapping, name → settings."""


class Dataset(Section):
    """A dataset split on disk."""

    name: Name
    """As artefacts, directions and `--split` call it."""
    layout: Literal["mvtec", "visa", "folder", "csv", "coco", "synthetic"]
    """How labels and masks are read from the names of files (docs/datasets.md)."""
    root: Folder
    """Its folder; from the working directory if it is relative."""
    split: Literal["test", "train", "all"] = "test"
    """The part of the layout; layouts without a training split know `test` and `all`."""
    sets: tuple[str, ...] = ()
    """Subfolders of `root` that form a union; categories are prefixed by their set."""
    categories: tuple[str, ...] | None = None
    """These alone; default: all that there are."""
    licence: str | None = None
    """Stated in every artefact that is made from it; default: what the layout's files say."""


class Direction(Section):
    """Everything is fitted on `aux` and applied unchanged to `target`."""

    aux: Name
    """The labelled auxiliary set."""
    target: Name
    """The set that is scored with what was fitted."""

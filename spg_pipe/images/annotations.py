"""Masks that no file holds, but a COCO annotation file draws: `instances.json#17`, of image 17.

Only what masks need is read. Polygons are of corners: the first pixel covers 0 to 1, and a pixel is
inside if its centre is.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spg_pipe.artefacts.record import Inside
from spg_pipe.errors import SpgError
from spg_pipe.recipe.data import Side

_SIGN = ".json#"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
Id = Annotated[int | _Name, Field(union_mode="left_to_right")]
Coordinate = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Polygon = Annotated[list[Coordinate], Field(min_length=6)]


class _Lenient(BaseModel):
    """A part of an annotation file, of which other keys do not matter."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Runs(_Lenient):
    """Run lengths: pixels outside, inside, outside, …, column after column."""

    size: tuple[Side, Side]
    """Height and width, pixels."""
    counts: list[Annotated[int, Field(ge=0, le=10**9)]] | str
    """Numbers, or COCO's compressed text."""


class CocoImage(_Lenient):
    """An image that is annotated."""

    id: Id
    file_name: Annotated[Inside, Field(min_length=1, max_length=1000)]
    height: Side
    width: Side


class Annotation(_Lenient):
    """One object in an image."""

    image_id: Id
    category_id: Id
    segmentation: list[Polygon] | Runs | None = None
    """None or empty: the object has a box alone."""

    @field_validator("segmentation", mode="before")
    @classmethod
    def _drawn(cls, value: object) -> object:
        """Without empty polygons, which some tools write of a box."""
        return [part for part in value if part != []] if isinstance(value, list) else value


class CocoCategory(_Lenient):
    """A class of objects."""

    id: Id
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class CocoFile(_Lenient):
    """An annotation file, every object of it."""

    images: list[CocoImage]
    annotations: list[Annotation]
    categories: list[CocoCategory]


def read_coco(path: Path) -> CocoFile:
    """A COCO annotation file, kept while it is the same.

    An `SpgError` if it cannot be read, or names the place of the first fault.
    """
    try:
        stat = path.stat()
        return _parsed(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise SpgError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place, found = ".".join(map(str, fault["loc"])), repr(fault["input"])[:100]
        raise SpgError(
            f"{path} is no COCO annotation file that can be read: {place or 'the file'}: "
            f"{fault['msg']}; found {found}. Export it again as COCO (instances)."
        ) from error


def annotated(mask: Path) -> tuple[Path, str] | None:
    """The annotation file and the image's id that a mask's path names; None of a file's."""
    head, sign, image = str(mask).rpartition(_SIGN)
    return (Path(f"{head}.json"), image) if sign and not mask.exists() else None


def mask_content(file: Path, image: str) -> bytes:
    """What draws the mask of an image, as bytes to be hashed and drawn; `SpgError` as above."""
    read_coco(file)
    stat = file.stat()
    indexed = _by_image(file, stat.st_mtime_ns, stat.st_size)
    if image not in indexed:
        raise SpgError(f"{file} has no image {image} any more. Run `spg-pipe prepare` again.")
    return json.dumps(indexed[image]).encode()


def drawn_size(content: bytes) -> tuple[int, int]:
    """Height and width of a mask, pixels, by its `mask_content`."""
    height, width = json.loads(content)["size"]
    return height, width


def drawn(content: bytes) -> np.ndarray:
    """The mask of its `mask_content`: (H, W) uint8 in {0, 1}; a ValueError says what is wrong."""
    from skimage.draw import polygon

    height, width = drawn_size(content)
    mask = np.zeros((height, width), np.uint8)
    for part in json.loads(content)["parts"]:
        if isinstance(part, dict):
            counts = part["counts"]
            counts = _uncompressed(counts) if isinstance(counts, str) else counts
            if part["size"] != [height, width] or sum(counts) != height * width or min(counts) < 0:
                raise ValueError(f"has run lengths that are not of {width}×{height} pixels")
            inside = np.arange(len(counts)) % 2 == 1
            mask |= np.repeat(inside, counts).reshape(width, height).T
            continue
        for corners in part:
            if len(corners) % 2:
                raise ValueError("has a polygon with a number that is no x, y")
            x, y = np.array(corners).reshape(-1, 2).T
            mask[polygon(y - 0.5, x - 0.5, mask.shape)] = 1
    return mask


def _uncompressed(text: str) -> list[int]:
    """Run lengths from COCO's text: five bits a character, then differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 35:
            raise ValueError("has run lengths that are no text of COCO")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("has run lengths that are cut off")
    return counts


@lru_cache(maxsize=4)
def _parsed(path: Path, _time: int, _size: int) -> CocoFile:
    return CocoFile.model_validate_json(path.read_bytes())


@lru_cache(maxsize=4)
def _by_image(path: Path, time: int, size: int) -> dict[str, dict[str, list[object]]]:
    """Of each image, by its id, its size and the parts of its mask."""
    coco = _parsed(path, time, size)
    parts: dict[Id, list[object]] = {image.id: [] for image in coco.images}
    for one in coco.annotations:
        if one.image_id in parts and one.segmentation:
            part = one.segmentation
            parts[one.image_id].append(part.model_dump() if isinstance(part, Runs) else part)
    return {
        str(image.id): {"size": [image.height, image.width], "parts": parts[image.id]}
        for image in coco.images
    }

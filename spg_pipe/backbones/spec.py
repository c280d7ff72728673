"""What a backbone is, as plain values: everything that determines its tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from spg_pipe.artefacts.record import LARGEST_SIDE, LayerName, Name, Record, Size
from spg_pipe.errors import SpgError
from spg_pipe.images.preprocess import Preprocess
from spg_pipe.recipe.data import Precision

Family = Literal["timm-vit", "timm-cnn", "open_clip", "arrays"]
"""`arrays`: tokens that were given as arrays; nothing can compute more of them."""
Norm = Literal["post", "pre"]
PosEmbed = Literal["native", "bilinear"]
Prefix = Literal["cls", "mean", "zeros"]
T = TypeVar("T")
LABELS = frozenset({"alias", "weights", "licence"})
"""Fields of a specification that say the same in words: weights count by their hash."""


Alias = Annotated[str, Field(pattern=r"^(timm:|open_clip:)?[A-Za-z0-9][A-Za-z0-9._/-]{0,200}$")]
"""What a backbone may be called: no hub's address and no folder (`hf-hub:…`, `local-dir:…`)."""


class Tiles(Record):
    """How large images are cut (`backbones.tiling`)."""

    size: Size
    """Side of a tile, pixels: what the network itself sees."""
    sides: Annotated[tuple[Size, ...], Field(min_length=1)]
    """Sides in pixels to which an image is resized before it is cut, rising."""
    overlap: Annotated[float, Field(ge=0, le=0.9)]
    """Least share of a tile's side that its neighbour sees, too, but for rounding to patches."""

    def starts(self, side: int, patch_size: int) -> list[int]:
        """First pixels of the tiles along one axis: evenly spread multiples of the patch size."""
        step = self.size * (1 - self.overlap)
        gaps = math.ceil((side - self.size) / step)
        return [
            round(number * (side - self.size) / gaps / patch_size) * patch_size if gaps else 0
            for number in range(gaps + 1)
        ]

    def count(self, patch_size: int) -> int:
        """Tiles of an image, of all sides."""
        return sum(len(self.starts(side, patch_size)) ** 2 for side in self.sides)


@dataclass(frozen=True)
class TokenKey:
    """Which tokens of an image: those of a layer, or of a layer at one side of several."""

    layer: str
    """The backbone's layer."""
    side: int | None = None
    """Of the image, pixels, where it is cut into tiles at several sides; else None."""

    @property
    def name(self) -> str:
        """What stores and score maps call their array: ``6``, or ``6@448``."""
        return self.layer if self.side is None else f"{self.layer}@{self.side}"


class BackboneSpec(Record):
    """A resolved backbone: no defaults and no protocol left to look up (docs/method.md §1, §5).

    Two specs that are equal give the same tokens for the same image. Stores and detectors keep
    it as JSON.
    """

    alias: Alias
    """The full name, e.g. ``dinov3-large`` (also where ``dinov3`` was asked for)."""
    family: Family
    """Which adapter computes the tokens."""
    model: Name
    """Name in timm (with its tag) or in open_clip (``NAME/PRETRAINED``)."""
    layers: Annotated[tuple[LayerName, ...], Field(min_length=1)]
    """ViT: block numbers from 1 (``"24"``); CNN: grids by stride (``"s8"``)."""
    norm: Norm
    """``post``: after the backbone's final norm (CLIP: and its projection); ``pre``: as the block
    or stage leaves it."""
    patch_size: Size
    """Pixels; the image size must be a multiple. CNN: the largest stride of `layers`."""
    preprocess: Preprocess
    """From a decoded image to the backbone's input."""
    pos_embed: PosEmbed
    """How position embeddings are resized: the library's own way, or bilinear without antialias
    (CLIP in ``protocol: spg``)."""
    prefix: Prefix
    """The token in front of the patches: ``cls``, the model's own; else what stands for it, the
    ``mean`` patch token or ``zeros`` (SigLIP in ``protocol: spg``)."""
    weights: Name
    """Where the weights came from, for people; never a folder of this machine."""
    weights_sha256: Name
    """Of the tensors, sorted by name; of the package's file for installed weights."""
    licence: str
    """Licence of the weights."""
    tiles: Tiles | None = None
    """How images of `preprocess.size` are cut into what the network sees; None: not at all."""
    precision: Precision = "float32"
    """How the network may compute, where the processor can (`backbones.precision`)."""

    def require_layers(self, names: Collection[str]) -> None:
        """ValueError unless these are the names of an image's tokens."""
        if set(names) != (ours := {key.name for key in self.token_keys}):
            held, expected = (", ".join(sorted(each)) for each in (names, ours))
            raise ValueError(f"the layers are {held}, expected the backbone's: {expected}")

    def differing(self, other: BackboneSpec) -> list[str]:
        """Names of the fields that make other tokens; labels of the same weights do not."""
        names = [name for name in type(self).model_fields if name not in LABELS]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def content(self) -> dict[str, object]:
        """Plain JSON values; without tiles there is no word of them, nor of precision float32."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def untiled(self) -> BackboneSpec:
        """What the network itself sees: the same spec without tiles."""
        if self.tiles is None:
            return self
        preprocess = replace(self.preprocess, size=self.tiles.size)
        return self.model_copy(update={"preprocess": preprocess, "tiles": None})

    @property
    def inputs_per_image(self) -> int:
        """How many images of the network's own size one image is: 1, or its number of tiles."""
        return self.tiles.count(self.patch_size) if self.tiles else 1

    @property
    def seen_at(self) -> str:
        """The backbone, the pixels that it sees and its precision, in words."""
        precision = "" if self.precision == "float32" else f" in {self.precision}"
        if self.tiles is None:
            return f"{self.alias}@{self.preprocess.size}{precision}"
        sides = "+".join(map(str, self.tiles.sides))
        share = f"{self.tiles.overlap:.0%}"
        return f"{self.alias}@{sides} in tiles of {self.tiles.size} (overlap {share}){precision}"

    @property
    def token_keys(self) -> tuple[TokenKey, ...]:
        """All tokens of an image, side after side."""
        sides = self.tiles.sides if self.tiles and len(self.tiles.sides) > 1 else (None,)
        return tuple(TokenKey(layer, side) for side in sides for layer in self.layers)

    def keyed(self, values: Mapping[str, T]) -> dict[TokenKey, T]:
        """Values by the names of their tokens → by key, in the same order."""
        keys = {key.name: key for key in self.token_keys}
        return {keys[name]: value for name, value in values.items()}


def check_image_size(size: int, multiple: int, name: str) -> None:
    """Raise SpgError unless `size` is a positive multiple of `multiple` up to 16,384 (pixels)."""
    if 0 < size <= LARGEST_SIDE and size % multiple == 0:
        return
    below = max(min(size, LARGEST_SIDE - multiple) // multiple, 1) * multiple
    nearest = f"{below}" if size < below else f"{below} or {below + multiple}"
    raise SpgError(
        f"Image size {size} does not fit {name}: it must be a multiple of {multiple} pixels "
        f"(its patch size or largest stride), at most {LARGEST_SIDE}. Nearest valid: {nearest}."
    )

"""What a backbone is, as plain values: everything that determines its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from spg_pipe.datasets.images import Preprocess
from spg_pipe.errors import SpgError

Family = Literal["timm-vit", "timm-cnn", "open_clip"]
Norm = Literal["post", "pre"]
PosEmbed = Literal["native", "bilinear"]
Prefix = Literal["cls", "mean", "zeros"]


@dataclass(frozen=True)
class BackboneSpec:
    """A resolved backbone: no defaults and no protocol left to look up (docs/method.md §1, §5).

    Two specs that are equal give the same tokens for the same image. Stores and detectors keep
    it as JSON.
    """

    alias: str
    """The full name, e.g. ``dinov3-large`` (also where ``dinov3`` was asked for)."""
    family: Family
    """Which adapter computes the tokens."""
    model: str
    """Name in timm (with its tag) or in open_clip (``NAME/PRETRAINED``)."""
    layers: tuple[str, ...]
    """ViT: block numbers from 1 (``"24"``); CNN: grids by stride (``"s8"``)."""
    norm: Norm
    """``post``: after the backbone's final norm (CLIP: and its projection); ``pre``: as the block
    or stage leaves it."""
    patch_size: int
    """Pixels; the image size must be a multiple. CNN: the largest stride of `layers`."""
    preprocess: Preprocess
    """From a decoded image to the backbone's input."""
    pos_embed: PosEmbed
    """How position embeddings are resized: the library's own way, or bilinear without antialias
    (CLIP in ``protocol: spg``)."""
    prefix: Prefix
    """The token in front of the patches: ``cls``, the model's own; else what stands for it, the
    ``mean`` patch token or ``zeros`` (SigLIP in ``protocol: spg``)."""
    weights: str
    """Where the weights came from, for people; never a folder of this machine."""
    weights_sha256: str
    """Of the tensors, sorted by name; of the package's file for installed weights."""
    licence: str
    """Licence of the weights."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` is the inverse."""
        plain = asdict(self)
        plain["layers"] = list(self.layers)
        plain["preprocess"]["mean"] = list(self.preprocess.mean)
        plain["preprocess"]["std"] = list(self.preprocess.std)
        return plain

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> BackboneSpec:
        """Rebuild a spec from `to_dict`'s values.

        Raises
        ------
        SpgError
            If a field is missing or unknown: the artefact is of another version or damaged.
        """
        try:
            pre = dict(d["preprocess"])
            for key in ("mean", "std"):
                r, g, b = (float(v) for v in pre[key])
                pre[key] = (r, g, b)
            values = dict(
                d, layers=tuple(str(v) for v in d["layers"]), preprocess=Preprocess(**pre)
            )
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise SpgError(
                f"This is not a backbone spec of this version of spg-pipe: {error}. "
                "Make the artefact again with the installed version."
            ) from error


def check_image_size(size: int, multiple: int, name: str) -> None:
    """Raise SpgError unless `size` (pixels) is a positive multiple of `multiple` (pixels)."""
    if size > 0 and size % multiple == 0:
        return
    below = max(size // multiple, 1) * multiple
    nearest = f"{below}" if size < below else f"{below} or {below + multiple}"
    raise SpgError(
        f"Image size {size} does not fit {name}: it must be a multiple of {multiple} pixels "
        f"(its patch size or largest stride). Nearest valid: {nearest}."
    )


def check_vit_layers(layers: tuple[str, ...], depth: int, name: str) -> None:
    """Raise SpgError unless every layer is a block number from 1 to `depth`."""
    unknown = [v for v in layers if not (v.isascii() and v.isdigit() and 1 <= int(v) <= depth)]
    if unknown:
        raise SpgError(
            f"{name} has no layer {unknown[0]!r}: its layers are blocks, numbered from 1 to "
            f"{depth}."
        )

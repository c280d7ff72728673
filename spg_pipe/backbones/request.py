"""What `load_backbone` was asked for, and the spec that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spg_pipe.backbones.names import BackboneInfo
from spg_pipe.backbones.spec import BackboneSpec, Norm, PosEmbed, Prefix
from spg_pipe.backbones.weights import Weights, weights_from_file
from spg_pipe.datasets.images import Preprocess
from spg_pipe.errors import SpgError


@dataclass(frozen=True)
class Request:
    """What `load_backbone` was asked for: names looked up, nothing else resolved."""

    info: BackboneInfo
    image_size: int
    layers: tuple[str, ...]
    """Empty: the family's default."""
    norm: Norm | None
    protocol: Literal["default", "spg"]
    weights: Path | None
    device: str

    def blocks(self, depth: int) -> tuple[str, ...]:
        """The layers of a ViT: those asked for, else the alias's, else the last block.

        Raises SpgError unless every layer is a block number from 1 to `depth`.
        """
        layers = self.layers or self.info.layers or (str(depth),)
        for name in layers:
            if not (name.isascii() and name.isdigit() and 1 <= int(name) <= depth):
                raise SpgError(
                    f"{self.info.alias} has no layer {name!r}: its layers are blocks, numbered "
                    f"from 1 to {depth}."
                )
        return layers

    def weights_or(self, published: Callable[[], Weights]) -> Weights:
        """The weights of the file that was named, else the published ones."""
        return weights_from_file(self.weights) if self.weights is not None else published()

    def spec(
        self,
        layers: tuple[str, ...],
        patch_size: int,
        preprocess: Preprocess,
        weights: Weights,
        *,
        norm: Norm,
        prefix: Prefix,
        pos_embed: PosEmbed = "native",
    ) -> BackboneSpec:
        """The resolved backbone."""
        return BackboneSpec(
            alias=self.info.alias,
            family=self.info.family,
            model=self.info.model,
            layers=layers,
            norm=norm,
            patch_size=patch_size,
            preprocess=preprocess,
            pos_embed=pos_embed,
            prefix=prefix,
            weights=weights.label,
            weights_sha256=weights.sha256,
            licence=self.info.licence,
        )


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

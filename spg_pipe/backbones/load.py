"""From a name and options to a backbone that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spg_pipe.backbones.light_imports import without_dynamo
from spg_pipe.backbones.names import BackboneInfo, Request, find_alias
from spg_pipe.backbones.spec import Norm
from spg_pipe.errors import SpgError

if TYPE_CHECKING:
    from spg_pipe.backbones.base import Network


def load_backbone(
    name: str,
    *,
    image_size: int | None = None,
    layers: Sequence[str | int] | None = None,
    norm: Norm | None = None,
    protocol: Literal["default", "spg"] = "default",
    weights: Path | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> Network:
    """Load a frozen backbone with its weights.

    An `SpgError` for an unknown name or layer, a size that does not fit, or weights that cannot be
    had.

    Parameters
    ----------
    name : str
        An alias (`list_backbones`), a timm model (``timm:NAME`` or its plain name, with or
        without a tag), or ``open_clip:NAME/PRETRAINED``.
    image_size : int, optional
        Side of the square input in pixels; must be a multiple of the patch size, or of the
        largest stride of the chosen layers. Default: the alias's, else the model's own.
    layers : sequence of str or int, optional
        ViT blocks from 1, or CNN strides such as ``"s16"``. Default: the alias's, else the last
        block, or ``s8`` and ``s16``.
    norm : {"post", "pre"}, optional
        Overrides what the backbone and the protocol say.
    protocol : {"default", "spg"}
        ``spg``: DINOv2 before its final norm, CLIP's position embedding bilinear, zeros for
        SigLIP's missing class token (docs/method.md §5).
    weights : Path, optional
        A local state dict (.safetensors or .pth) instead of the published weights.
    device : str
        Where the network runs and its tokens stay, as torch names it.
    say : callable
        Told what is downloaded, and from where, before it is.

    Returns
    -------
    Network
        A `Backbone` in evaluation mode; calling it records no gradients.
    """
    if norm not in (None, "post", "pre"):
        raise SpgError(f"Unknown norm {norm!r}: expected 'post' or 'pre'.")
    if protocol not in ("default", "spg"):
        raise SpgError(f"Unknown protocol {protocol!r}: expected 'default' or 'spg'.")
    info = resolve(name)
    size = info.image_size if image_size is None else image_size
    chosen = info.layers if layers is None else _layer_names(layers)
    return _build(Request(info, size, chosen, norm, protocol, weights, device, say))


def _build(request: Request) -> Network:
    """The backbone of its family, whose libraries are loaded here and not before."""
    import torch

    # Convolutions in TF32 would give a GPU's tokens three digits fewer than a CPU's.
    torch.backends.cudnn.allow_tf32 = False
    if request.info.family == "open_clip":
        from spg_pipe.backbones.openclip import build_open_clip

        return build_open_clip(request)
    with without_dynamo():
        from spg_pipe.backbones.timm_models import build_timm_cnn, build_timm_vit

        return (build_timm_vit if request.info.family == "timm-vit" else build_timm_cnn)(request)


def resolve(name: str) -> BackboneInfo:
    """What a name stands for, with its defaults; SpgError if nothing knows it.

    Names are what the installed libraries list, no address of a hub or folder: nobody is contacted.
    """
    if (info := find_alias(name)) is not None:
        return info
    if name.startswith("open_clip:"):
        from spg_pipe.backbones.openclip import resolve_open_clip

        return resolve_open_clip(name.removeprefix("open_clip:"))
    with without_dynamo():
        from spg_pipe.backbones.timm_models import resolve_timm

    return resolve_timm(name.removeprefix("timm:"))


def _layer_names(layers: Sequence[str | int]) -> tuple[str, ...]:
    if isinstance(layers, str) or not layers:
        raise SpgError(f"Layers must be a list such as [6, 8] or [s8, s16]; found {layers!r}.")
    names = tuple(str(layer) for layer in layers)
    if len(set(names)) != len(names):
        raise SpgError(f"Layers are named twice: {', '.join(names)}.")
    return names

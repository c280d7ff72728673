"""OpenCLIP's vision transformers: every token through ln_post and the projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from spg_pipe.backbones.base import LayerTokens, Network, blocks_of
from spg_pipe.backbones.hub import weights_for
from spg_pipe.backbones.names import BackboneInfo, Request
from spg_pipe.backbones.spec import BackboneSpec, Norm, PosEmbed, check_image_size
from spg_pipe.backbones.weights import Weights, load_strictly
from spg_pipe.errors import SpgError
from spg_pipe.images.preprocess import Preprocess

HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def open_clip_vit(visual: VisionTransformer, spec: BackboneSpec, device: str) -> Network:
    """Patch and class tokens of chosen blocks of a CLIP image tower (docs/method.md §1).

    Of norm ``post``, tokens are ``ln_post(x) @ proj``, in the width of the shared space. The
    position embedding of `visual` is resized once, to the spec's grid.
    """
    side = spec.preprocess.size // spec.patch_size
    resize_pos_embed(visual, side, spec.pos_embed)
    tower = visual.eval().requires_grad_(False).to(device)
    post = spec.norm == "post"

    def run(images: Tensor, blocks: list[int]) -> list[LayerTokens]:
        outputs = tower.forward_intermediates(
            images,
            indices=blocks,
            normalize_intermediates=post,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        tokens = []
        for pair in zip(
            outputs["image_intermediates_prefix"], outputs["image_intermediates"], strict=True
        ):
            joined = torch.cat(pair, dim=1)
            values = (joined @ tower.proj if post else joined).float()
            patches, prefix = values[:, 1:].contiguous(), values[:, :1].contiguous()
            tokens.append(LayerTokens(patches, prefix, (side, side)))
        return tokens

    return Network(spec, device, blocks_of(spec), run)


def resize_pos_embed(visual: VisionTransformer, side: int, how: PosEmbed) -> None:
    """Resize the position embedding of `visual` in place to a grid of `side` × `side` patches.

    ``native`` is open_clip's own way when it loads weights (bicubic with antialias);
    ``bilinear`` the published code's (no antialias, ``align_corners=False``).
    """
    table = visual.positional_embedding.detach()
    if tuple(visual.grid_size) == (side, side):
        return
    grid = table[1:].unflatten(0, tuple(visual.grid_size)).permute(2, 0, 1)[None]
    native = how == "native"
    grid = F.interpolate(
        grid,
        size=(side, side),
        mode="bicubic" if native else "bilinear",
        antialias=native,
        align_corners=False,
    )
    patches = grid[0].permute(1, 2, 0).flatten(0, 1)
    visual.positional_embedding = nn.Parameter(torch.cat([table[:1], patches]), requires_grad=False)
    visual.grid_size = (side, side)


def resolve_open_clip(name: str) -> BackboneInfo:
    """Describe ``NAME/PRETRAINED``, e.g. ``ViT-B-32-quickgelu/openai``; SpgError if unknown."""
    model, _, tag = name.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise SpgError(
            f"open_clip has no weights {tag!r} for {model!r}. Write open_clip:NAME/PRETRAINED with "
            "names of `open_clip.list_pretrained()`, e.g. open_clip:ViT-B-32-quickgelu/openai; for "
            f"{model!r} one of: {', '.join(tags) or 'none are published'}."
        )
    return BackboneInfo(
        alias=f"open_clip:{name}",
        family="open_clip",
        model=name,
        licence="not stated by open_clip; see the model's page",
        image_size=int(open_clip.get_model_config(model)["vision_cfg"].get("image_size", 224)),
        note="an open_clip model",
    )


def build_open_clip(request: Request) -> Network:
    """Build the backbone that `request` names.

    Raises SpgError for a tower that is no plain ViT, a block that it does not have, an image size
    that its patch size does not divide, or weights that cannot be had or do not fit.
    """
    info = request.info
    name, _, tag = info.model.partition("/")
    published = open_clip.get_pretrained_cfg(name, tag)
    architecture = open_clip.get_model_config(name)
    norm = request.norm or info.norm
    _refuse_other_towers(info, architecture, published, norm)
    vision = architecture["vision_cfg"]
    patch_size = int(vision["patch_size"])
    check_image_size(request.image_size, patch_size, info.alias)
    layers = request.blocks(int(vision["layers"]))
    repo, _, file = (published.get("hf_hub") or "").rpartition("/")
    weights = weights_for(request, repo, (file,) if file else HUB_FILES)
    spec = request.spec(
        weights,
        layers=layers,
        norm=norm,
        patch_size=patch_size,
        preprocess=preprocess_for(info.model, request.image_size),
        pos_embed="bilinear" if request.protocol == "spg" else "native",
        prefix="cls",
    )
    return open_clip_vit(load_visual(architecture, weights), spec, request.device)


def preprocess_for(model: str, size: int) -> Preprocess:
    """Return the published preprocessing of ``NAME/PRETRAINED`` at `size` pixels.

    8-bit pixels are resized with Pillow's bicubic filter (docs/method.md §1).
    """
    name, _, tag = model.partition("/")
    published = open_clip.get_pretrained_cfg(name, tag)
    return Preprocess(size, "uint8", "bicubic", tuple(published["mean"]), tuple(published["std"]))


def build_tower(architecture: Mapping[str, Any]) -> VisionTransformer:
    """Build the image tower of an open_clip model config with random weights."""
    # The text tower beside it is thrown away; the real one would cost half a gigabyte.
    text = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
    return open_clip.CLIP(
        embed_dim=architecture["embed_dim"],
        vision_cfg=architecture["vision_cfg"],
        text_cfg=text,
        quick_gelu=architecture.get("quick_gelu", False),
    ).visual


def load_visual(architecture: Mapping[str, Any], weights: Weights) -> VisionTransformer:
    """Build the image tower of an open_clip model config; raise SpgError if weights do not fit.

    Parameters
    ----------
    architecture : mapping
        ``embed_dim``, ``vision_cfg`` and perhaps ``quick_gelu``, as in open_clip's JSON files.
    weights : Weights
        A whole CLIP's state dict (its ``visual.`` part is used) or the tower's alone.
    """
    visual = build_tower(architecture)
    state = weights.state
    part = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    load_strictly(visual, part or state, weights.label)
    return visual


def _refuse_other_towers(
    info: BackboneInfo, architecture: Mapping[str, Any], published: Mapping[str, Any], norm: Norm
) -> None:
    vision = architecture["vision_cfg"]
    trunk = vision.get("timm_model_name") or "NAME"
    if "siglip" in trunk:  # three sets of weights share their architectures
        is_second, is_i18n = "SigLIP2" in info.model, "i18n" in info.model
        trunk += ".v2_webli" if is_second else ".webli_i18n" if is_i18n else ".webli"
    if vision.get("timm_model_name") or not isinstance(vision.get("layers"), int):
        raise SpgError(
            f"The image tower of {info.model} is not open_clip's own ViT: use a timm backbone "
            f"instead (timm:{trunk})."
        )
    if vision.get("attentional_pool") and norm == "post":
        raise SpgError(
            f"{info.model} pools by attention before ln_post and proj, so its tokens have no "
            "projected form: use `norm: pre`."
        )
    if published.get("quick_gelu") and not architecture.get("quick_gelu"):
        right = info.model.replace("/", "-quickgelu/")
        raise SpgError(
            f"The weights {info.model} were trained with QuickGELU, which this model name does "
            f"not use, so its tokens would be wrong: use open_clip:{right}."
        )

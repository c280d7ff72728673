"""timm's plain vision transformers: DINOv3, DINOv2, and any other."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import is_model_in_modules
from torch import Tensor, nn

from spg_pipe.backbones.base import LayerTokens, place_images, stand_in
from spg_pipe.backbones.request import Request, check_image_size
from spg_pipe.backbones.spec import BackboneSpec, Norm, Prefix
from spg_pipe.backbones.timm_common import load_model, preprocess_for, skeleton
from spg_pipe.errors import SpgError


class TimmViT:
    """Patch tokens and the class token of chosen blocks (docs/method.md §1)."""

    def __init__(self, model: Any, spec: BackboneSpec, device: torch.device) -> None:
        """Wrap `model`, a timm ViT whose weights are loaded."""
        self.spec = spec
        self._model = model
        self._device = device
        self._has_prefix = model.num_prefix_tokens > 0

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        """See `spg_pipe.backbones.base.Backbone`."""
        x = place_images(images, self._device, self.spec)
        # timm counts blocks from 0 and returns them in their own order.
        blocks = sorted(int(layer) for layer in self.spec.layers)
        outputs = self._model.forward_intermediates(
            x,
            indices=[block - 1 for block in blocks],
            return_prefix_tokens=self._has_prefix,
            norm=self.spec.norm == "post",
            output_fmt="NLC",
            stop_early=True,
            intermediates_only=True,
        )
        by_block = dict(zip(blocks, outputs, strict=True))
        return {layer: self._to_tokens(by_block[int(layer)]) for layer in self.spec.layers}

    def _to_tokens(self, output: Tensor | tuple[Tensor, Tensor]) -> LayerTokens:
        patches, prefix = output if isinstance(output, tuple) else (output, None)
        patches = patches.contiguous().float()
        if prefix is not None and self.spec.prefix == "cls":
            cls = prefix[:, :1].contiguous().float()
        else:
            cls = stand_in(patches, self.spec.prefix)
        side = self.spec.preprocess.size // self.spec.patch_size
        return LayerTokens(patches, cls, (side, side))


def build_timm_vit(request: Request) -> TimmViT:
    """Build the backbone that `request` names.

    Raises SpgError for a block that the model does not have, an image size that its patch size
    does not divide, ``norm: post`` where the tokens have no final norm, or weights that cannot be
    had or do not fit.
    """
    info = request.info
    # BEiT's relative positions are tables of one size: timm resizes them when it loads.
    is_beit = is_model_in_modules(info.model.partition(".")[0], ("beit",))
    options = {"img_size": request.image_size} if is_beit else {"dynamic_img_size": True}
    plan = skeleton(info, **options)
    patch_size = int(plan.patch_embed.patch_size[0])
    check_image_size(request.image_size, patch_size, info.alias)
    layers = request.blocks(len(plan.blocks))
    norm = _resolve_norm(request, has_norm=not isinstance(plan.norm, nn.Identity))
    model, weights = load_model(request, **options)
    preprocess = preprocess_for(info.model, request.image_size)
    prefix = _resolve_prefix(request, plan)
    spec = request.spec(layers, patch_size, preprocess, weights, norm=norm, prefix=prefix)
    return TimmViT(model, spec, torch.device(request.device))


def _resolve_norm(request: Request, *, has_norm: bool) -> Norm:
    """Explicit, else the published code's for DINOv2 in protocol spg, else the model's own."""
    if request.norm == "post" and not has_norm:
        raise SpgError(
            f"{request.info.alias} normalises the pooled feature, not the tokens: use `norm: pre`."
        )
    if request.norm is not None:
        return request.norm
    if not has_norm or (request.protocol == "spg" and "dinov2" in request.info.model):
        return "pre"
    return request.info.norm


def _resolve_prefix(request: Request, plan: Any) -> Prefix:
    """The class token, else the published code's zeros for SigLIP in protocol spg, else the mean.

    A prefix may be registers alone: then there is no class token among them.
    """
    if getattr(plan, "cls_token", None) is not None:
        return "cls"
    return "zeros" if request.protocol == "spg" and "siglip" in request.info.model else "mean"

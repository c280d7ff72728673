"""timm's plain vision transformers: DINOv3, DINOv2, and any other."""

from __future__ import annotations

from timm.models import is_model_in_modules
from torch import Tensor, nn

from spg_pipe.backbones.base import LayerTokens, Network, blocks_of, stand_in
from spg_pipe.backbones.load import Request, check_image_size
from spg_pipe.backbones.spec import Norm, Prefix
from spg_pipe.backbones.timm_common import load_model, preprocess_for, skeleton
from spg_pipe.errors import SpgError


def build_timm_vit(request: Request) -> Network:
    """Build the backbone that `request` names (docs/method.md §1).

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
    stands_in: Prefix = "mean"
    if request.protocol == "spg" and "siglip" in info.model:
        stands_in = "zeros"  # the published code's
    model, weights = load_model(request, **options)
    spec = request.spec(
        weights,
        layers=layers,
        norm=norm,
        patch_size=patch_size,
        preprocess=preprocess_for(info.model, request.image_size),
        pos_embed="native",
        # A prefix may be registers alone: then there is no class token among them.
        prefix=stands_in if getattr(plan, "cls_token", None) is None else "cls",
    )
    side = request.image_size // patch_size

    def run(images: Tensor, blocks: list[int]) -> list[LayerTokens]:
        outputs = model.forward_intermediates(
            images,
            indices=blocks,
            return_prefix_tokens=model.num_prefix_tokens > 0,
            norm=norm == "post",
            output_fmt="NLC",
            stop_early=True,
            intermediates_only=True,
        )
        tokens = []
        for output in outputs:
            values, extra = output if isinstance(output, tuple) else (output, None)
            patches = values.contiguous().float()
            if extra is not None and spec.prefix == "cls":
                cls = extra[:, :1].contiguous().float()
            else:
                cls = stand_in(patches, spec.prefix)
            tokens.append(LayerTokens(patches, cls, (side, side)))
        return tokens

    return Network(spec, request.device, blocks_of(spec), run)


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

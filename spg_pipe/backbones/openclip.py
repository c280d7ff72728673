"""OpenCLIP's vision transformers: every token through ln_post and the projection."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor

from spg_pipe.backbones.base import LayerTokens, place_images
from spg_pipe.backbones.hub import weights_from_hub, weights_from_url
from spg_pipe.backbones.names import BackboneInfo
from spg_pipe.backbones.spec import (
    BackboneSpec,
    Norm,
    PosEmbed,
    check_image_size,
    check_vit_layers,
)
from spg_pipe.backbones.timm_common import Request
from spg_pipe.backbones.weights import StateDict, Weights, load_strictly, weights_from_file
from spg_pipe.datasets.images import Preprocess
from spg_pipe.errors import SpgError

HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class OpenClipViT:
    """Patch and class tokens of chosen blocks of a CLIP image tower (docs/method.md §1)."""

    def __init__(self, visual: VisionTransformer, spec: BackboneSpec, device: torch.device) -> None:
        """Wrap `visual`; its position embedding is resized once, to the spec's grid."""
        self.spec = spec
        side = spec.preprocess.size // spec.patch_size
        resize_pos_embed(visual, side, spec.pos_embed)
        self._visual = visual.eval().requires_grad_(False).to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        """See `spg_pipe.backbones.base.Backbone`."""
        x = place_images(images, self._device, self.spec)
        side = self.spec.preprocess.size // self.spec.patch_size
        blocks = [int(layer) for layer in self.spec.layers]
        tokens = clip_tokens(self._visual, x, blocks, self.spec.norm)
        return {
            str(block): LayerTokens(t[:, 1:].contiguous(), t[:, :1].contiguous(), (side, side))
            for block, t in tokens.items()
        }


def clip_tokens(
    visual: VisionTransformer, images: Tensor, blocks: list[int], norm: Norm
) -> dict[int, Tensor]:
    """Compute all tokens of the chosen blocks with plain attention.

    Parameters
    ----------
    visual : VisionTransformer
        open_clip's image tower, its position embedding of the images' grid.
    images : Tensor
        (B, 3, S, S) float32, normalised.
    blocks : list of int
        Block numbers from 1.
    norm : {"post", "pre"}
        ``post``: ``ln_post(x) @ proj``, width of the shared space; ``pre``: the block's output.

    Returns
    -------
    dict
        Block → (B, 1 + N, D) float32, the class token first.
    """
    outputs = visual.forward_intermediates(
        images,
        indices=[block - 1 for block in sorted(blocks)],
        normalize_intermediates=norm == "post",
        stop_early=True,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    pairs = zip(
        outputs["image_intermediates_prefix"], outputs["image_intermediates"], strict=True
    )
    tokens = [torch.cat(pair, dim=1) for pair in pairs]
    if norm == "post":
        tokens = [t @ visual.proj for t in tokens]
    by_block = dict(zip(sorted(blocks), tokens, strict=True))
    return {block: by_block[block].float() for block in blocks}


def resize_pos_embed(visual: VisionTransformer, side: int, how: PosEmbed) -> None:
    """Resize the position embedding of `visual` in place to a grid of `side` × `side` patches.

    ``native`` is open_clip's own way when it loads weights (bicubic with antialias);
    ``bilinear`` the published code's (no antialias, ``align_corners=False``).
    """
    table = visual.positional_embedding.detach()
    old_h, old_w = visual.grid_size
    if (old_h, old_w) != (side, side):
        grid = table[1:].reshape(1, old_h, old_w, -1).permute(0, 3, 1, 2)
        native = how == "native"
        grid = F.interpolate(
            grid,
            size=(side, side),
            mode="bicubic" if native else "bilinear",
            antialias=native,
            align_corners=False,
        )
        patches = grid.permute(0, 2, 3, 1).reshape(side * side, -1)
        visual.positional_embedding = torch.nn.Parameter(
            torch.cat([table[:1], patches]), requires_grad=False
        )
        visual.grid_size = (side, side)

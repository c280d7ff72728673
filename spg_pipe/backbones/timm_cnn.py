"""timm's CNNs, and every other timm model that gives a pyramid of grids.

Each cell of a grid is a token; the mean token stands for CLS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spg_pipe.backbones.base import LayerTokens, Network, stand_in
from spg_pipe.backbones.load import Request, check_image_size
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.backbones.timm_common import fixed_size, load_model, preprocess_for, skeleton
from spg_pipe.errors import SpgError


def build_timm_cnn(request: Request) -> Network:
    """Build the backbone that `request` names.

    Raises SpgError for a layer that is no stride of the model, an image size that the strides do
    not divide, ``norm: post``, or weights that cannot be had or do not fit.
    """
    info = request.info
    if request.norm == "post":
        raise SpgError(
            f"{info.alias} gives feature grids, which have no final norm: use `norm: pre`."
        )
    strides = _strides(skeleton(info), info.alias)
    usual = tuple(layer for layer in ("s8", "s16") if layer in strides)
    layers = request.layers or usual or (list(strides)[-1],)
    unknown = [layer for layer in layers if layer not in strides]
    if unknown:
        raise SpgError(
            f"{info.alias} has no layer {unknown[0]!r}; its layers are named by stride: "
            f"{', '.join(strides)}."
        )
    largest = max(int(layer[1:]) for layer in layers)
    only = fixed_size(info.model)
    if only is not None and (only != request.image_size or only % largest):
        raise SpgError(
            f"{info.alias} works at {only} pixels only, and its largest stride, {largest}, must "
            f"divide them; found {request.image_size}."
        )
    check_image_size(request.image_size, largest, info.alias)
    loaded, weights = load_model(request)
    spec = request.spec(
        weights,
        layers=layers,
        norm="pre",
        patch_size=largest,
        preprocess=preprocess_for(info.model, request.image_size),
        pos_embed="native",
        prefix="mean",
    )
    # Channels last halves the time of a CNN on a CPU, and its grids are tokens as they lie.
    model = loaded.to(memory_format=torch.channels_last)
    names = {strides[layer]: layer for layer in layers}

    def run(images: Tensor, indices: list[int]) -> list[LayerTokens]:
        grids = model.forward_intermediates(
            images.contiguous(memory_format=torch.channels_last),
            indices=indices,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        pairs = zip(indices, grids, strict=True)
        return [_to_tokens(grid, names[index], spec) for index, grid in pairs]

    return Network(spec, request.device, {layer: strides[layer] for layer in layers}, run)


def _strides(plan: Any, name: str) -> dict[str, int]:
    """Layer name → timm's feature index; of several grids with one stride the last, deepest."""
    entries = getattr(plan, "feature_info", None)
    if not entries or not hasattr(plan, "forward_intermediates"):
        raise SpgError(f"{name} offers no intermediate feature grids: choose another timm model.")
    return {f"s{entry['reduction']}": index for index, entry in enumerate(entries)}


def _to_tokens(grid: Tensor, layer: str, spec: BackboneSpec) -> LayerTokens:
    h, w = int(grid.shape[2]), int(grid.shape[3])
    if h * int(layer[1:]) != spec.preprocess.size:
        raise SpgError(
            f"{spec.model} gives a grid of {h}×{w} for {layer} at {spec.preprocess.size} pixels: "
            "its features are not those of a stride, so this model cannot be used."
        )
    patches = grid.flatten(2).transpose(1, 2).contiguous().float()
    return LayerTokens(patches, stand_in(patches, spec.prefix), (h, w))

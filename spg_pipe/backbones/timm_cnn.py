"""timm's CNNs, and every other timm model that gives a pyramid of grids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spg_pipe.backbones.base import LayerTokens, place_images, stand_in
from spg_pipe.backbones.request import Request, check_image_size
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.backbones.timm_common import fixed_size, load_model, preprocess_for, skeleton
from spg_pipe.errors import SpgError


class TimmCnn:
    """Feature grids of a timm model; each cell is a token, the mean token stands for CLS."""

    def __init__(
        self, model: Any, spec: BackboneSpec, indices: dict[str, int], device: torch.device
    ) -> None:
        """Wrap `model`; `indices` gives timm's feature index of each layer of `spec`."""
        self.spec = spec
        # Channels last halves the time of a CNN on a CPU, and its grids are tokens as they lie.
        self._model = model.to(memory_format=torch.channels_last)
        self._indices = indices
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        """See `spg_pipe.backbones.base.Backbone`."""
        x = place_images(images, self._device, self.spec)
        x = x.contiguous(memory_format=torch.channels_last)
        grids = self._model.forward_intermediates(
            x,
            indices=sorted(self._indices.values()),
            stop_early=True,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        by_index = dict(zip(sorted(self._indices.values()), grids, strict=True))
        return {
            layer: _to_tokens(by_index[self._indices[layer]], layer, self.spec)
            for layer in self.spec.layers
        }


def build_timm_cnn(request: Request) -> TimmCnn:
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
    layers = request.layers or info.layers or _default_layers(strides)
    unknown = [layer for layer in layers if layer not in strides]
    if unknown:
        raise SpgError(
            f"{info.alias} has no layer {unknown[0]!r}; its layers are named by stride: "
            f"{', '.join(strides)}."
        )
    largest = max(int(layer[1:]) for layer in layers)
    if (only := fixed_size(info.model)) is not None:
        if only % largest:
            # CrossViT: two grids whose cells no whole stride divides.
            raise SpgError(
                f"{info.alias} works at {only} pixels only, which its stride as timm states it, "
                f"{largest}, does not divide: its features are not a grid. Choose another timm "
                "model."
            )
        if only != request.image_size:
            raise SpgError(f"{info.alias} works at {only} pixels only; found {request.image_size}.")
    check_image_size(request.image_size, largest, info.alias)
    model, weights = load_model(request)
    preprocess = preprocess_for(info.model, request.image_size)
    spec = request.spec(layers, largest, preprocess, weights, norm="pre", prefix="mean")
    return TimmCnn(
        model, spec, {layer: strides[layer] for layer in layers}, torch.device(request.device)
    )


def _strides(plan: Any, name: str) -> dict[str, int]:
    """Layer name → timm's feature index; of several grids with one stride the last, deepest."""
    entries = getattr(plan, "feature_info", None)
    if not entries or not hasattr(plan, "forward_intermediates"):
        raise SpgError(f"{name} offers no intermediate feature grids: choose another timm model.")
    return {f"s{entry['reduction']}": index for index, entry in enumerate(entries)}


def _default_layers(strides: dict[str, int]) -> tuple[str, ...]:
    wanted = tuple(layer for layer in ("s8", "s16") if layer in strides)
    return wanted or (list(strides)[-1],)


def _to_tokens(grid: Tensor, layer: str, spec: BackboneSpec) -> LayerTokens:
    h, w = int(grid.shape[2]), int(grid.shape[3])
    if h * int(layer[1:]) != spec.preprocess.size:
        raise SpgError(
            f"{spec.model} gives a grid of {h}×{w} for {layer} at {spec.preprocess.size} pixels: "
            "its features are not those of a stride, so this model cannot be used."
        )
    patches = grid.flatten(2).transpose(1, 2).contiguous().float()
    return LayerTokens(patches, stand_in(patches, spec.prefix), (h, w))

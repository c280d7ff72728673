"""The one interface behind which every backbone looks the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from spg_pipe.backbones.spec import BackboneSpec, Prefix
from spg_pipe.errors import SpgError


class LayerTokens(NamedTuple):
    """Tokens of one layer for a batch of B images."""

    patches: Tensor
    """(B, N, D) float32: the patch tokens, row-major over the grid, N = h·w."""
    prefix: Tensor
    """(B, 1, D) float32: CLS, or what stands for it where the model has none (`spec.prefix`).
    Register and distillation tokens are dropped."""
    grid: tuple[int, int]
    """(h, w) in patches."""


class Backbone(Protocol):
    """A frozen network: normalised images in, tokens of the chosen layers out."""

    spec: BackboneSpec

    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        """Compute tokens without gradients.

        Parameters
        ----------
        images : Tensor
            (B, 3, S, S) float32, preprocessed as `spec.preprocess` says; any device.

        Returns
        -------
        dict
            Layer name → tokens, in the order of `spec.layers`, on the backbone's device.
        """
        ...


Run = Callable[[Tensor, list[int]], Iterable[LayerTokens]]
"""Images (B, 3, S, S) on the network's device, and the numbers wanted, rising → tokens of each."""


class Network:
    """A network of a library as a `Backbone`.

    `device` is where its weights are; `indices`: layer of `spec` → the library's number of it.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        device: str,
        indices: Mapping[str, int],
        run: Run,
    ) -> None:
        self.spec = spec
        self.indices, self.run = indices, run
        self._device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        """See `Backbone`."""
        wanted = sorted(self.indices.values())
        outputs = self.run(place_images(images, self._device, self.spec), wanted)
        tokens = dict(zip(wanted, outputs, strict=True))
        return {layer: tokens[self.indices[layer]] for layer in self.spec.layers}


def blocks_of(spec: BackboneSpec) -> dict[str, int]:
    """The layers of a ViT → its blocks as the libraries count them, from 0."""
    return {layer: int(layer) - 1 for layer in spec.layers}


def stand_in(patches: Tensor, prefix: Prefix, kept: Tensor | None = None) -> Tensor:
    """What stands for CLS: (B, N, D) → (B, 1, D), the mean patch token or zeros (method.md §1)."""
    zeros = prefix == "zeros"
    return torch.zeros_like(patches[:, :1]) if zeros else mean_token(patches, kept)[:, None]


def mean_token(patches: Tensor, kept: Tensor | None = None) -> Tensor:
    """The mean patch token: (B, N, D) → (B, D).

    `kept` (B, N) in [0, 1] is how much each patch counts; 1 for all gives the same bits as None.
    """
    mean = patches.mean(dim=1)
    if kept is None:
        return mean
    kept = kept.to(patches)
    weights = kept / kept.sum(dim=1, keepdim=True).clamp_min(1e-30)
    weighted = (weights[:, None] @ patches)[:, 0]
    return torch.where((kept == 1).all(dim=1, keepdim=True), mean, weighted)


def place_images(images: Tensor, device: torch.device, spec: BackboneSpec) -> Tensor:
    """Move (B, 3, S, S) images to `device`; raise SpgError if S is not the spec's size."""
    size = spec.preprocess.size
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise SpgError(
            f"Backbone {spec.alias} takes images (B, 3, {size}, {size}) and was given "
            f"{tuple(images.shape)}: preprocess them with the backbone's own spec."
        )
    return images.to(device, torch.float32)


def forward(backbone: Backbone, images: Tensor, at_once: int) -> dict[str, LayerTokens]:
    """Tokens of a batch, so many images at once; a GPU without memory for them gets halves."""
    parts = images.split(at_once)
    if len(parts) == 1:
        try:
            return backbone(images)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        torch.cuda.empty_cache()
        parts = images.chunk(2)
    outputs = [forward(backbone, part, at_once) for part in parts]
    return {layer: joined([output[layer] for output in outputs]) for layer in outputs[0]}


def joined(parts: Sequence[LayerTokens]) -> LayerTokens:
    """Tokens of one layer for the images of all parts, in their order."""
    patches, prefix, grids = zip(*parts, strict=True)
    return LayerTokens(torch.cat(patches), torch.cat(prefix), grids[0])

"""Images → frozen backbone → the arrays of a shard: a store's only code that decodes an image."""

import ctypes
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from spg_pipe.backbones.base import Backbone, forward
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.datasets.manifest import Manifest, MaskState
from spg_pipe.errors import SpgError
from spg_pipe.images.preprocess import preprocess, resize_mask
from spg_pipe.images.reading import read_image, read_mask
from spg_pipe.metrics.regions import vanished_regions
from spg_pipe.store.format import StoreSpec
from spg_pipe.store.source import in_order
from spg_pipe.store.writer import Arrays

Progress = Callable[[int, int], None]
_CPU_WORKERS = 8
"""At most so many forward passes at once on a CPU, because each needs memory of its own; beyond,
a pass gets several cores."""

_Decoded = tuple[range, torch.Tensor, list[tuple[np.ndarray, int]]]
"""Rows, their images (B, 3, S, S), and of each image its mask and how many regions that lost."""


@dataclass
class ImageCount:
    """Images that are done, and who wants to know."""

    done: int
    total: int
    progress: Progress | None

    def add(self, images: int) -> None:
        """So many more are done."""
        self.done += images
        if self.progress:
            self.progress(self.done, self.total)


class ShardComputer:
    """The way of a batch from its files to a shard."""

    def __init__(
        self, spec: StoreSpec, manifest: Manifest, backbone: Backbone, device: str
    ) -> None:
        self._spec, self._manifest = spec, manifest
        self._backbone, self._device = backbone, device
        self._at_once = inputs_at_once(spec.backbone, spec.batch_images, device)

    def run(
        self,
        shards: Iterable[int],
        write: Callable[[int, Arrays], None],
        workers: int,
        count: ImageCount,
    ) -> None:
        """Compute shards and have each written; they are asked for as they are begun."""
        spec, on_cpu = self._spec, torch.device(self._device).type == "cpu"
        step = spec.batch_images
        with core_workers(workers, one_core_each=on_cpu) as pool, ThreadPoolExecutor(1) as disk:
            batches = (
                rows[start : start + step]
                for rows in map(spec.shard_rows, shards)
                for start in range(0, len(rows), step)
            )
            results = (
                in_order(pool, lambda rows: self._compute(self._decode(rows)), batches, workers + 1)
                if on_cpu
                else map(self._compute, in_order(pool, self._decode, batches, 2 * workers))
            )
            filled: list[Arrays] = []
            writing: Future[None] | None = None
            for batch, arrays in results:
                filled.append(arrays)
                shard = batch.start // spec.shard_images
                if batch.stop == spec.shard_rows(shard).stop:
                    # One shard is written while the next is filled, never more: memory.
                    if writing is not None:
                        writing.result()
                    writing = disk.submit(self._write, write, shard, filled)
                    filled = []
                    give_memory_back()
                count.add(len(batch))
            if writing is not None:
                writing.result()

    def _decode(self, rows: range) -> _Decoded:
        """Images (B, 3, S, S) float32, and the mask of each."""
        how = self._spec.backbone.preprocess
        images = torch.empty(len(rows), 3, how.size, how.size)
        for image, row in zip(images.numpy(), rows, strict=True):
            path, manifest = self._manifest.image_path(row), self._manifest
            pixels = read_image(path, exif=manifest.exif, white=manifest.white)
            image[...] = preprocess(pixels, how)
        masks = [_mask(self._manifest, how.size, row) for row in rows]
        for row in rows:
            self._manifest.require_unchanged(row)
        return rows, images, masks

    def _compute(self, decoded: _Decoded) -> tuple[range, Arrays]:
        rows, images, with_masks = decoded
        output = forward(self._backbone, images.to(self._device), self._at_once)
        masks, lost = zip(*with_masks, strict=True)
        arrays = {"mask": np.stack(masks), "lost_regions": np.array(lost, np.uint32)}
        for layer in list(output):
            value = output.pop(layer)  # its memory is free as soon as it is cast
            arrays[f"tokens_{layer}"] = self._cast(value.patches, layer)
            arrays[f"prefix_{layer}"] = self._cast(value.prefix, layer)
        return rows, arrays

    def _write(
        self, write: Callable[[int, Arrays], None], shard: int, batches: list[Arrays]
    ) -> None:
        """Write a shard; its batches are used up, array after array, for memory."""
        names = list(batches[0])
        write(shard, {name: np.concatenate([b.pop(name) for b in batches]) for name in names})

    def _cast(self, values: torch.Tensor, layer: str) -> np.ndarray:
        """Tokens in the store's dtype; one that does not fit is an error, never an infinity."""
        stored = values.to(torch.float16 if self._spec.dtype == "float16" else torch.float32)
        # A sum is finite if its terms are; it needs no memory of the tokens' size.
        if not bool(stored.sum(dtype=torch.float64).isfinite()):
            raise SpgError(
                f"Layer {layer} has tokens that do not fit {self._spec.dtype} (largest value "
                f"{float(values.abs().max()):.4g}). Set `extract.dtype: float32` "
                "and extract with --replace."
            )
        return stored.cpu().numpy()


def _mask(manifest: Manifest, size: int, row: int) -> tuple[np.ndarray, int]:
    """A mask (S, S) uint8, and how many of its regions did not survive the resizing."""
    path = manifest.mask_path(row)
    if path is None or manifest.table["mask_state"].iloc[row] != MaskState.GIVEN:
        return np.zeros((size, size), np.uint8), 0
    mask = read_mask(path, exif=manifest.exif)
    resized = resize_mask(mask, size)
    return resized, vanished_regions(mask, resized)


def lost_regions(manifest: Manifest, size: int, rows: range) -> list[int]:
    """Of each row, how many regions of its mask did not survive."""
    return [_mask(manifest, size, row)[1] for row in rows]


def core_workers(count: int, *, one_core_each: bool) -> ThreadPoolExecutor:
    """Threads for decoding; with `one_core_each`, torch computes in them on few cores each.

    That number depends on the machine alone, so that `--workers` does not change a bit.
    """
    if not one_core_each:
        return ThreadPoolExecutor(count, "spg-decode")
    cores = max(1, (os.cpu_count() or 1) // _CPU_WORKERS)
    count = min(count, _CPU_WORKERS)
    return ThreadPoolExecutor(count, "spg-extract", torch.set_num_threads, (cores,))


def give_memory_back() -> None:
    """Have glibc return what its arenas, one or more a thread, hold without using it.

    Tokens of tens of megabytes leave them in pieces, and the peak would grow with the run's length.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # other C libraries have no such call, and no need of it
        trim(0)


def inputs_at_once(spec: BackboneSpec, batch_images: int, device: str) -> int:
    """Images or tiles in a forward pass.

    The maps of a CNN's first layers, megabytes an image, stay in a CPU's cache only if images come
    one by one: 2.2 times faster for EfficientNet-Lite0 at 448 px. ViTs do not care.
    """
    alone = spec.family == "timm-cnn" and torch.device(device).type == "cpu"
    return 1 if alone else batch_images

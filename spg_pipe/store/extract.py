"""Images → frozen backbone → feature store: the only stage that decodes an image."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from spg_pipe.artefacts.files import versions
from spg_pipe.backbones.base import Backbone, forward
from spg_pipe.backbones.precision import computed_by
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.datasets.manifest import Manifest, MaskState
from spg_pipe.errors import SpgError, told
from spg_pipe.images.preprocess import preprocess, resize_mask
from spg_pipe.images.reading import read_image, read_mask
from spg_pipe.metrics.regions import vanished_regions
from spg_pipe.store.format import LayerShape, StoreSpec, large_arrays
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import in_order
from spg_pipe.store.writer import StoreWriter

Progress = Callable[[int, int], None]

SHARD_IMAGES = 64
"""Images a shard file, 100 to 400 MB of a ViT's tokens: few files, and little to redo."""
_CPU_WORKERS = 8
"""At most so many forward passes at once on a CPU, because each needs memory of its own; beyond,
a pass gets several cores."""


@dataclass(frozen=True)
class Extraction:
    """How tokens are computed and stored."""

    batch_images: int = 8
    """Images a forward pass. A GPU without enough memory for them takes them in halves."""
    shard_images: int = SHARD_IMAGES
    """Images a shard file. Of tiled images fewer, so that files and memory keep their size."""
    dtype: Literal["float16", "float32"] = "float16"
    compressor: Literal["none", "zstd"] = "none"


def extract(
    manifest: Manifest,
    backbone: Backbone,
    path: Path,
    how: Extraction = Extraction(),
    *,
    replace: bool = False,
    workers: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FeatureStore:
    """Compute the tokens of a manifest's images into a store.

    A store that is already there is finished if it was begun with the same inputs, and returned
    at once if it is complete. Batches never cross a shard's border, so a resumed run computes
    the same batches as an unbroken one.

    On a CPU every worker takes a batch from the files to its tokens, each on a core of its own:
    decoding and forward passes then share the cores without waiting for each other, and the result
    does not depend on the number of workers. On a GPU workers decode ahead of the forward passes.

    Parameters
    ----------
    path : Path
        The store's folder.
    replace : bool
        Replace a store of other content in the same place.
    workers : int
        Threads that decode and, on a CPU, compute.
    progress : callable (images done, images in all), optional

    Raises
    ------
    SpgError
        For an image that cannot be read, another store in the place, or another process that
        writes there.
    """
    if len(manifest) == 0:
        raise SpgError(f"Dataset {manifest.dataset!r} has no images.")
    spec = spec_of(manifest, backbone.spec, how, _layer_shapes(backbone, device)).model_copy(
        update={"computed": computed_by(backbone.spec.precision, device)}
    )
    try:
        with StoreWriter(path, spec, manifest, replace=replace) as writer:
            if not writer.up_to_date:
                _Run(writer, backbone, device).run(workers, progress)
    except OSError as error:
        raise SpgError(
            f"The store cannot be written. {told(error, path)} --out names another place; the same "
            "command goes on with the shards that are finished, if there are any."
        ) from error
    return FeatureStore(path)


def spec_of(
    manifest: Manifest, backbone: BackboneSpec, how: Extraction, layers: dict[str, LayerShape]
) -> StoreSpec:
    """The attributes of a store of these images."""
    inputs = backbone.inputs_per_image  # a tiled image holds as many tokens as so many others
    return StoreSpec(
        dataset=manifest.dataset,
        split=manifest.split,
        manifest=manifest.fingerprint(),
        images=len(manifest),
        backbone=backbone,
        layers=layers,
        shard_images=max(1, min(how.shard_images // inputs, len(manifest))),
        batch_images=max(1, how.batch_images // inputs),
        dtype=how.dtype,
        exif=manifest.exif,
        white=manifest.white,
        compressor=how.compressor,
        licences=(*manifest.licences, backbone.licence),
        notes=manifest.notes,
        skipped=manifest.skipped,
        selection=dict(manifest.selection),
        sources=manifest.own_sources,
        layout=manifest.layout,
        versions=versions(),
    ).sealed()


Arrays = dict[str, np.ndarray]
"""Parts of the store's large arrays by their names, of a batch or a shard of B images: tokens
(B, N, D) and prefix tokens (B, P, D) in the store's dtype, masks (B, S, S) uint8, which are all
zero where there is none: `mask_state` tells which."""


class _Run:
    """The way of a batch from its files to a shard."""

    def __init__(self, writer: StoreWriter, backbone: Backbone, device: str) -> None:
        self._writer, self._spec, self._manifest = writer, writer.spec, writer.manifest
        self._backbone, self._device = backbone, device
        self._at_once = inputs_at_once(writer.spec.backbone, writer.spec.batch_images, device)

    def run(self, workers: int, progress: Progress | None) -> None:
        """Compute and write the shards that are missing, then finish the store."""
        spec, missing = self._spec, self._writer.missing_shards
        on_cpu = torch.device(self._device).type == "cpu"
        lost = np.zeros(spec.images, np.uint32)
        done = spec.images - sum(len(spec.shard_rows(shard)) for shard in missing)
        with core_workers(workers, one_core_each=on_cpu) as pool, ThreadPoolExecutor(1) as disk:
            for shard in sorted(set(range(spec.shards)) - set(missing)):
                rows = spec.shard_rows(shard)
                lost[rows.start : rows.stop] = [n for _, n in pool.map(self._mask, rows)]
            step = spec.batch_images
            batches = [
                rows[start : start + step]
                for rows in map(spec.shard_rows, missing)
                for start in range(0, len(rows), step)
            ]
            results = (
                in_order(pool, lambda rows: self._compute(self._decode(rows)), batches, workers + 1)
                if on_cpu
                else map(self._compute, in_order(pool, self._decode, batches, 2 * workers))
            )
            filled: list[Arrays] = []
            writing: Future[None] | None = None
            for batch, (arrays, vanished) in zip(batches, results, strict=True):
                filled.append(arrays)
                lost[batch.start : batch.stop] = vanished
                done += len(batch)
                shard = batch.start // spec.shard_images
                if batch.stop == spec.shard_rows(shard).stop:
                    # One shard is written while the next is filled, never more: memory.
                    if writing is not None:
                        writing.result()
                    writing = disk.submit(self._write, shard, filled)
                    filled = []
                    give_memory_back()
                if progress:
                    progress(done, spec.images)
            if writing is not None:
                writing.result()
        self._writer.finish(lost)

    def _decode(self, rows: range) -> tuple[torch.Tensor, list[tuple[np.ndarray, int]]]:
        """Images (B, 3, S, S) float32, and the mask of each."""
        how = self._spec.backbone.preprocess
        images = torch.empty(len(rows), 3, how.size, how.size)
        for image, row in zip(images.numpy(), rows, strict=True):
            path, manifest = self._manifest.image_path(row), self._manifest
            pixels = read_image(path, exif=manifest.exif, white=manifest.white)
            image[...] = preprocess(pixels, how)
        masks = [self._mask(row) for row in rows]
        for row in rows:
            self._manifest.require_unchanged(row)
        return images, masks

    def _mask(self, row: int) -> tuple[np.ndarray, int]:
        """A mask (S, S) uint8, and how many of its regions did not survive the resizing."""
        size = self._spec.backbone.preprocess.size
        path = self._manifest.mask_path(row)
        if path is None or self._manifest.table["mask_state"].iloc[row] != MaskState.GIVEN:
            return np.zeros((size, size), np.uint8), 0
        mask = read_mask(path, exif=self._manifest.exif)
        resized = resize_mask(mask, size)
        return resized, vanished_regions(mask, resized)

    def _compute(
        self, decoded: tuple[torch.Tensor, list[tuple[np.ndarray, int]]]
    ) -> tuple[Arrays, tuple[int, ...]]:
        images, with_masks = decoded
        output = forward(self._backbone, images.to(self._device), self._at_once)
        masks, lost = zip(*with_masks, strict=True)
        arrays = {"mask": np.stack(masks)}
        for layer in list(output):
            value = output.pop(layer)  # its memory is free as soon as it is cast
            arrays[f"tokens_{layer}"] = self._cast(value.patches, layer)
            arrays[f"prefix_{layer}"] = self._cast(value.prefix, layer)
        return arrays, lost

    def _write(self, shard: int, batches: list[Arrays]) -> None:
        """Write a shard; its batches are used up, array after array, for memory."""
        names = large_arrays(self._spec)
        joined = {name: np.concatenate([batch.pop(name) for batch in batches]) for name in names}
        self._writer.write_shard(shard, joined)

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


def _layer_shapes(backbone: Backbone, device: str) -> dict[str, LayerShape]:
    """Grids and widths, asked from the backbone itself: token counts are data."""
    size, prefix = backbone.spec.preprocess.size, (backbone.spec.prefix,)
    output = backbone(torch.zeros(1, 3, size, size, device=device))
    return {
        layer: LayerShape(grid=value.grid, dim=value.patches.shape[-1], prefix=prefix)
        for layer, value in output.items()
    }

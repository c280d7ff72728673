"""Images → frozen backbone → feature store: the only stage that decodes an image."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from spg_pipe.backbones.base import Backbone, LayerTokens
from spg_pipe.datasets.images import preprocess, read_image, read_mask, resize_mask
from spg_pipe.datasets.manifest import Manifest, MaskState
from spg_pipe.errors import SpgError
from spg_pipe.metrics.aupro import vanished_regions
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.schema import LayerShape, StoreSpec
from spg_pipe.store.writer import StoreWriter

Progress = Callable[[int, int], None]


def extract(
    manifest: Manifest,
    backbone: Backbone,
    path: Path,
    *,
    batch_images: int = 8,
    shard_images: int = 64,
    dtype: str = "float16",
    replace: bool = False,
    workers: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FeatureStore:
    """Compute the tokens of a manifest's images into a store.

    A store that is already there is finished if it was begun with the same inputs, and returned
    at once if it is complete. Batches never cross a shard's border, so a resumed run computes
    the same batches as an unbroken one.

    Parameters
    ----------
    manifest : Manifest
    backbone : Backbone
    path : Path
        The store's folder.
    batch_images : int
        Images a forward pass.
    shard_images : int
        Images a shard file.
    dtype : "float16" | "float32"
    replace : bool
        Replace a store of other content in the same place.
    workers : int
        Threads that decode and resize.
    device : str
    progress : callable (images done, images in all), optional

    Raises
    ------
    SpgError
        For an image that cannot be read, or another store in the place.
    """
    if len(manifest) == 0:
        raise SpgError(f"Dataset {manifest.dataset!r} has no images.")
    spec = StoreSpec(
        dataset=manifest.dataset,
        split=manifest.split,
        manifest=manifest.fingerprint(),
        images=len(manifest),
        backbone=backbone.spec,
        layers=_layer_shapes(backbone, device),
        shard_images=min(shard_images, len(manifest)),
        batch_images=batch_images,
        dtype=dtype,
        exif=manifest.exif,
    )
    writer = StoreWriter(path, spec, manifest, replace=replace)
    if not writer.up_to_date:
        try:
            _fill(writer, manifest, backbone, workers, device, progress)
        except SpgError:
            writer.discard_if_empty()
            raise
    return FeatureStore(path)


def _fill(
    writer: StoreWriter,
    manifest: Manifest,
    backbone: Backbone,
    workers: int,
    device: str,
    progress: Progress | None,
) -> None:
    """Compute and write the shards that are missing, then finish the store."""
    spec = writer.spec
    missing = writer.missing_shards
    done = spec.images - sum(len(spec.shard_rows(shard)) for shard in missing)
    lost = np.zeros(spec.images, np.uint32)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for shard in sorted(set(range(spec.shards)) - set(missing)):
            rows = spec.shard_rows(shard)
            _, lost[rows.start : rows.stop] = _masks(pool, manifest, spec, rows)
        for shard in missing:
            rows = spec.shard_rows(shard)
            tokens, prefix = _allocate(spec, len(rows))
            for batch, images in _decoded(pool, manifest, backbone, rows, spec.batch_images):
                _forward(backbone, images.to(device), batch, tokens, prefix)
                done += len(images)
                if progress:
                    progress(done, spec.images)
            masks, lost[rows.start : rows.stop] = _masks(pool, manifest, spec, rows)
            writer.write_shard(shard, tokens, prefix, masks)
    writer.finish(lost)


def _layer_shapes(backbone: Backbone, device: str) -> dict[str, LayerShape]:
    """Grids and widths, asked from the backbone itself: token counts are data."""
    size = backbone.spec.preprocess.size
    output = backbone(torch.zeros(1, 3, size, size, device=device))
    return {
        layer: LayerShape(grid=value.grid, dim=value.patches.shape[-1])
        for layer, value in output.items()
    }


def _allocate(spec: StoreSpec, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    tokens = {
        name: np.empty((count, s.patches, s.dim), np.float32) for name, s in spec.layers.items()
    }
    prefix = {
        name: np.empty((count, len(s.prefix), s.dim), np.float32) for name, s in spec.layers.items()
    }
    return tokens, prefix


def _decoded(
    pool: ThreadPoolExecutor, manifest: Manifest, backbone: Backbone, rows: range, batch: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Batches of preprocessed images (B, 3, S, S), decoded ahead of the forward pass."""
    spec = backbone.spec.preprocess
    paths = manifest.table["path"]

    def load(row: int) -> np.ndarray:
        return preprocess(read_image(manifest.root / paths.iloc[row], exif=manifest.exif), spec)

    pending: deque[Future[np.ndarray]] = deque()
    ahead = iter(rows)
    for start in range(0, len(rows), batch):
        stop = min(start + batch, len(rows))
        while len(pending) < 2 * batch and (row := next(ahead, None)) is not None:
            pending.append(pool.submit(load, row))
        images = [pending.popleft().result() for _ in range(stop - start)]
        yield slice(start, stop), torch.from_numpy(np.stack(images))


def _forward(
    backbone: Backbone,
    images: torch.Tensor,
    batch: slice,
    tokens: dict[str, np.ndarray],
    prefix: dict[str, np.ndarray],
) -> None:
    output: dict[str, LayerTokens] = backbone(images)
    for layer, value in output.items():
        tokens[layer][batch] = value.patches.cpu().numpy()
        prefix[layer][batch] = value.prefix.cpu().numpy()


def _masks(
    pool: ThreadPoolExecutor, manifest: Manifest, spec: StoreSpec, rows: range
) -> tuple[np.ndarray, list[int]]:
    """Masks (n, S, S) uint8, and how many regions of each did not survive the resizing.

    A mask is all zero where there is none; `mask_state` tells which.
    """
    size = spec.backbone.preprocess.size
    table = manifest.table

    def load(row: int) -> tuple[np.ndarray, int]:
        if table["mask_state"].iloc[row] != MaskState.GIVEN:
            return np.zeros((size, size), np.uint8), 0
        mask = read_mask(manifest.root / table["mask"].iloc[row], exif=manifest.exif)
        resized = resize_mask(mask, size)
        return resized, vanished_regions(mask, resized)

    masks, lost = zip(*pool.map(load, rows), strict=True)
    return np.stack(masks), list(lost)

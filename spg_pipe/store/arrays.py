"""A feature store of tokens that somebody has as arrays, of whatever backbone."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spg_pipe.artefacts.files import fingerprint, versions
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.datasets.manifest import (
    LABEL_ANOMALOUS,
    LABEL_NORMAL,
    LABEL_UNKNOWN,
    Manifest,
    MaskState,
    to_frame,
)
from spg_pipe.errors import SpgError
from spg_pipe.images.preprocess import Preprocess, resize_mask
from spg_pipe.metrics.regions import vanished_regions
from spg_pipe.store.format import LayerShape, StoreSpec
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.writer import StoreWriter

PATCH = 16
"""Pixels along a patch of the finest grid: what masks and maps count in."""
_SHARD_PATCHES = 65_536


def store_of_arrays(
    path: Path | str,
    tokens: np.ndarray | Mapping[str, np.ndarray],
    *,
    masks: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    name: str = "arrays",
    replace: bool = False,
) -> FeatureStore:
    """Write a store of tokens that are in memory, for training and scoring without images.

    The mean patch token of an image stands for its CLS token. Images keep their order; they are of
    one category.

    Parameters
    ----------
    path : Path
        The store's folder, for instance `own.zarr`.
    tokens : (n, h, w, D), (n, N, D) with N a square, or (n, D): one patch each
        float16, or else kept as float32. A mapping for several layers: name → array.
    masks : (n, H, W), optional
        Above 0 is a defect; of any size, since they are resized to `PATCH` pixels a patch.
    labels : (n,) int, optional
        0 normal, 1 anomalous. Default: by the masks; without masks nothing is known.
    name : str
        What the tokens were made by. Detectors are for tokens of the same name.
    replace : bool
        Replace a store of other content in the same place.

    Raises
    ------
    SpgError
        If shapes do not fit each other, a value is not finite, or the place holds something else.
    """
    given = tokens if isinstance(tokens, Mapping) else {"tokens": tokens}
    if not given:
        raise SpgError("There is no array of tokens. Give one, or a mapping from names to arrays.")
    layers = {layer: _on_grid(layer, np.asarray(each)) for layer, each in given.items()}
    images = {len(each) for each in (*layers.values(), masks, labels) if each is not None}
    if len(images) != 1 or 0 in images:
        raise SpgError(
            f"Tokens, masks and labels are of {sorted(images)} images: expected is one number "
            "above 0, the same for all."
        )
    side = PATCH * max(max(each.shape[1:3]) for each in layers.values())
    manifest = _manifest(name, layers, masks, labels, side)
    spec = _spec(name, layers, manifest, side)
    with StoreWriter(Path(path), spec, manifest, replace=replace) as writer:
        if not writer.up_to_date:
            _write(writer, layers, masks)
    return FeatureStore(path)


def _write(writer: StoreWriter, layers: Mapping[str, np.ndarray], masks: np.ndarray | None) -> None:
    """Write all shards that are missing, and finish the store."""
    spec, side = writer.spec, writer.spec.backbone.preprocess.size
    lost, seen = np.zeros(spec.images, np.uint32), np.zeros((spec.images, side, side), np.uint8)
    for row, mask in enumerate(() if masks is None else masks):
        seen[row] = resize_mask(mask, side)
        lost[row] = vanished_regions(mask, seen[row])
    for shard in writer.missing_shards:
        rows = spec.shard_rows(shard)
        part = slice(rows.start, rows.stop)
        arrays = {"mask": seen[part]}
        for layer, each in layers.items():
            flat = each[part].reshape(len(rows), -1, each.shape[-1]).astype(spec.dtype)
            mean = flat.mean(axis=1, keepdims=True, dtype=np.float64).astype(spec.dtype)
            arrays |= {f"tokens_{layer}": flat, f"prefix_{layer}": mean}
        writer.write_shard(shard, arrays)
    writer.finish(lost)


def _on_grid(layer: str, tokens: np.ndarray) -> np.ndarray:
    """(n, h, w, D) of what was given."""
    shape = tokens.shape
    if tokens.ndim == 2:
        tokens = tokens[:, None, None]
    elif tokens.ndim == 3 and (edge := round(shape[1] ** 0.5)) ** 2 == shape[1]:
        tokens = tokens.reshape(shape[0], edge, edge, shape[2])
    if tokens.ndim != 4 or not np.issubdtype(tokens.dtype, np.floating):
        raise SpgError(
            f"Layer {layer}: the tokens are {tokens.dtype} of shape {shape}. Expected are floats "
            "(images, rows, columns, D), (images, patches, D) of a square grid, or (tokens, D)."
        )
    if not np.isfinite(tokens).all():
        raise SpgError(f"Layer {layer}: some tokens are not finite. Leave those images out.")
    return tokens


def _manifest(
    name: str,
    layers: Mapping[str, np.ndarray],
    masks: np.ndarray | None,
    labels: np.ndarray | None,
    side: int,
) -> Manifest:
    """A row an image, which its tokens and its mask identify."""
    rows = []
    for row in range(len(next(iter(layers.values())))):
        mask = None if masks is None else masks[row]
        label = LABEL_UNKNOWN
        if labels is not None or mask is not None:
            marked = mask is not None and bool(np.any(mask))
            anomalous = marked if labels is None else bool(labels[row])
            label = LABEL_ANOMALOUS if anomalous else LABEL_NORMAL
        given = MaskState.GIVEN if mask is not None else MaskState.MISSING
        content = [np.ascontiguousarray(each[row]).tobytes() for each in layers.values()]
        rows.append(
            {
                "path": f"{row:07d}",
                "mask": "" if mask is None else f"{row:07d}_mask",
                "mask_state": MaskState.EMPTY if label == LABEL_NORMAL else given,
                "category": name,
                "defect": {LABEL_NORMAL: "good", LABEL_ANOMALOUS: "defect"}.get(label, ""),
                "label": label,
                "height": side if mask is None else mask.shape[0],
                "width": side if mask is None else mask.shape[1],
                "sha256": hashlib.sha256(b"".join(content)).hexdigest(),
                "mask_sha256": "" if mask is None else hashlib.sha256(mask.tobytes()).hexdigest(),
            }
        )
    return Manifest(
        dataset=name,
        split="all",
        layout="arrays",
        root=Path(),
        table=to_frame(rows),
        licences=(f"{name}: your own",),
        notes=(),
        exif=False,
    )


def _spec(name: str, layers: Mapping[str, np.ndarray], manifest: Manifest, side: int) -> StoreSpec:
    shapes = {
        layer: LayerShape(grid=each.shape[1:3], dim=each.shape[3], prefix=("mean",))
        for layer, each in layers.items()
    }
    backbone = BackboneSpec(
        alias=name,
        family="arrays",
        model=name,
        layers=tuple(layers),
        norm="pre",
        patch_size=PATCH,
        preprocess=Preprocess(side, "float", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        pos_embed="native",
        prefix="mean",
        weights="unknown",
        weights_sha256=fingerprint(name),
        licence="unknown",
    )
    images = max(1, _SHARD_PATCHES // max(shape.patches for shape in shapes.values()))
    half = all(each.dtype == np.float16 for each in layers.values())
    return StoreSpec(
        dataset=name,
        split="all",
        manifest=manifest.fingerprint(),
        images=len(manifest),
        backbone=backbone,
        layers=shapes,
        shard_images=min(images, len(manifest)),
        batch_images=1,
        dtype="float16" if half else "float32",
        exif=False,
        licences=manifest.licences,
        notes=(),
        skipped=(),
        selection={},
        sources={},
        layout=manifest.layout,
        versions=versions(),
    ).sealed()

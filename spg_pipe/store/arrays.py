"""A feature store of tokens that somebody has as arrays, of whatever backbone."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from spg_pipe.artefacts.files import fingerprint
from spg_pipe.artefacts.record import first_fault
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
from spg_pipe.store.extract import Extraction, spec_of
from spg_pipe.store.format import LayerShape, StoreSpec
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.writer import Arrays, StoreWriter

PATCH = 16
"""Pixels along a patch of the finest grid: what masks and maps count in."""
_SHARD_PATCHES = 65_536


def store_of_arrays(
    path: Path | str,
    tokens: np.ndarray | Mapping[str, np.ndarray],
    *,
    masks: np.ndarray | None = None,
    name: str = "arrays",
    replace: bool = False,
) -> FeatureStore:
    """Write a store of tokens that are in memory, for training and scoring without images.

    The mean patch token of an image stands for its CLS token. Images keep their order; they are of
    one category. An `SpgError` if shapes do not fit each other, a value is not finite, a name is
    none, or the place holds something else.

    Parameters
    ----------
    path : Path
        The store's folder, for instance `own.zarr`.
    tokens : (n, h, w, D), (n, N, D) with N a square, or (n, D): one patch each
        float16, or else kept as float32. A mapping for several layers: name → array.
    masks : (n, H, W), optional
        Above 0 is a defect, and without one an image is normal; without masks nothing is known.
        Of any size: they are resized to `PATCH` pixels a patch.
    name : str
        What the tokens were made by. Detectors are for tokens of the same name.
    replace : bool
        Replace a store of other content in the same place.
    """
    given = tokens if isinstance(tokens, Mapping) else {"tokens": tokens}
    if not given:
        raise SpgError("There is no array of tokens. Give one, or a mapping from names to arrays.")
    layers = {layer: _on_grid(layer, np.asarray(each)) for layer, each in given.items()}
    masks = None if masks is None else np.asarray(masks)
    images = {len(each) for each in (*layers.values(), masks) if each is not None}
    if len(images) != 1 or 0 in images or (masks is not None and masks.ndim != 3):
        shapes = [each.shape for each in (*layers.values(), masks) if each is not None]
        raise SpgError(
            f"The arrays are of shapes {shapes}. Expected are tokens and masks (images, height, "
            "width) of as many images, at least one."
        )
    side = PATCH * max(max(each.shape[1:3]) for each in layers.values())
    manifest = _manifest(name, layers, masks, side)
    try:
        spec = _spec(name, layers, manifest, side)
    except ValidationError as error:
        raise SpgError(
            f"The arrays make no store ({first_fault(error)}). Names are made of letters, digits "
            "and hyphens."
        ) from error
    _write(Path(path), spec, manifest, layers, _seen(masks, spec.images, side), replace)
    return FeatureStore(path)


def _write(
    path: Path,
    spec: StoreSpec,
    manifest: Manifest,
    layers: Mapping[str, np.ndarray],
    known: Arrays,
    replace: bool,
) -> None:
    """Write all shards that are missing, and finish the store; `known` of each image."""

    def lost_regions(rows: range) -> list[int]:
        return [int(count) for count in known["lost_regions"][rows.start : rows.stop]]

    with StoreWriter(path, spec, manifest, lost_regions, replace=replace) as writer:
        if writer.up_to_date:
            return
        for shard in writer.missing_shards:
            rows = spec.shard_rows(shard)
            part = slice(rows.start, rows.stop)
            arrays = {name: values[part] for name, values in known.items()}
            for layer, each in layers.items():
                flat = each[part].reshape(len(rows), -1, each.shape[-1]).astype(spec.dtype)
                mean = flat.mean(axis=1, keepdims=True, dtype=np.float64).astype(spec.dtype)
                arrays |= {f"tokens_{layer}": flat, f"prefix_{layer}": mean}
            writer.write_shard(shard, arrays)
        writer.finish()


def _seen(masks: np.ndarray | None, images: int, side: int) -> Arrays:
    """`mask` at the store's size and `lost_regions` of all images; nothing without masks."""
    lost, seen = np.zeros(images, np.uint32), np.zeros((images, side, side), np.uint8)
    for row, mask in enumerate(() if masks is None else masks):
        seen[row] = resize_mask(mask, side)
        lost[row] = vanished_regions(mask, seen[row])
    return {"mask": seen, "lost_regions": lost}


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
    name: str, layers: Mapping[str, np.ndarray], masks: np.ndarray | None, side: int
) -> Manifest:
    """A row an image, which its tokens and its mask identify."""
    rows = []
    for row, tokens in enumerate(zip(*layers.values(), strict=True)):
        mask = None if masks is None else masks[row]
        known = {"label": LABEL_UNKNOWN, "mask_state": MaskState.MISSING, "defect": ""}
        if mask is not None and mask.any():
            known = {"label": LABEL_ANOMALOUS, "mask_state": MaskState.GIVEN, "defect": "defect"}
        elif mask is not None:
            known = {"label": LABEL_NORMAL, "mask_state": MaskState.EMPTY, "defect": "good"}
        height, width = (side, side) if mask is None else mask.shape
        rows.append(
            known
            | {
                "path": f"{row:07d}",
                "mask": "" if mask is None else f"{row:07d}_mask",
                "category": name,
                "height": height,
                "width": width,
                "sha256": hashlib.sha256(b"".join(each.tobytes() for each in tokens)).hexdigest(),
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
    half = all(each.dtype == np.float16 for each in layers.values())
    images = max(1, _SHARD_PATCHES // max(shape.patches for shape in shapes.values()))
    how = Extraction(1, images, "float16" if half else "float32")
    return spec_of(manifest, backbone, how, shapes)

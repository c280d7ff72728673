"""What a store holds, as plain values: sizes, counts, and how the tokens of each layer lie."""

from typing import Any

import numpy as np

from spg_pipe.store.reader import FeatureStore

NORM_IMAGES = 64
"""Images whose tokens are read for `token_norms`: enough for a percentile, quick on any store."""
_LARGEST_DIMS = 3
_CONSTANT = 1e-7
"""Deviation in units of the mean that float64 sums of squares cannot tell from none."""
_NEAR_CONSTANT = 1e-4
"""Deviation in units of the median one; whitening would blow such a dimension up."""


def summary(store: FeatureStore) -> dict[str, Any]:
    """Describe a store.

    Everything but `token_norms` comes from the store's attributes and small arrays. Values are
    plain; docs/cli.md explains those of a layer.
    """
    table = store.table
    states = table["mask_state"].value_counts().to_dict()
    spec, backbone = store.spec, store.spec.backbone
    images = np.random.default_rng(0).permutation(len(store))[:NORM_IMAGES]
    sample = np.sort(images)  # always the same of a store of this size
    return {
        "kind": "feature store",
        **spec.model_dump(include={"dataset", "split", "images"}),
        "normal": int((table["label"] == 0).sum()),
        "anomalous": int((table["label"] == 1).sum()),
        "unknown": int((table["label"] == 255).sum()),
        "masks": {
            name: states.get(state, 0) for state, name in enumerate(("empty", "given", "missing"))
        },
        "categories": table["category"].value_counts(sort=False).to_dict(),
        "backbone": f"{backbone.alias} ({backbone.model}), {backbone.norm}-norm",
        "precision": spec.computed or backbone.precision,
        "image_size": store.image_size,
        "weights": f"{backbone.weights}, sha256 {backbone.weights_sha256[:16]}…",
        "layers": {layer: _layer(store, layer, sample) for layer in store.layers},
        "dtype": spec.dtype,
        "shards": spec.shards,
        "megabytes": round(sum(entry.bytes for entry in store.entries) / 1e6, 1),
        **spec.model_dump(mode="json", include={"licences", "notes"}),
        "skipped": [str(bad) for bad in spec.skipped],
        "fingerprint": store.fingerprint,
    }


def _layer(store: FeatureStore, layer: str, sample: np.ndarray) -> dict[str, Any]:
    shape = store.spec.layers[layer]
    mean, std = store.array(f"mean_{layer}"), store.array(f"std_{layer}")
    mean_norm, std_norm = float(np.linalg.norm(mean)), float(np.linalg.norm(std))
    norms = token_norms(store, layer, sample)
    low, high = np.percentile(norms, [5, 95])
    return {
        "grid": f"{shape.grid[0]}×{shape.grid[1]}",
        "patches": shape.patches,
        "dim": shape.dim,
        "prefix": list(shape.prefix),
        "mean_norm": mean_norm,
        "std_norm": std_norm,
        "gamma": mean_norm / max(std_norm, 1e-12),
        **dimension_counts(mean, std),
        "largest_dims": largest_dims(mean, std),
        "token_norms": {
            "mean": float(norms.mean()),
            "p05": float(low),
            "p95": float(high),
            "sampled_images": len(sample),
        },
    }


def dimension_counts(mean: np.ndarray, std: np.ndarray) -> dict[str, int]:
    """How many dimensions (D,) carry nothing or next to nothing.

    Returns
    -------
    dict
        `zero_dims`: 0 in every token. `constant_dims`: one value in every token, 0 included.
        `near_constant_dims`: of the others, those with a deviation below 1e-4 of their median.
    """
    constant = std <= _CONSTANT * np.abs(mean)
    varying = std[~constant]
    near = varying < _NEAR_CONSTANT * np.median(varying) if len(varying) else varying
    return {
        "zero_dims": int(((mean == 0) & (std == 0)).sum()),
        "constant_dims": int(constant.sum()),
        "near_constant_dims": int(near.sum()),
    }


def largest_dims(mean: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """The dimensions with the largest mean square: number (from 0) → share of the sum over all.

    Massive dimensions show here: one of D alike has a share of 1 / D.
    """
    squares = mean**2 + std**2
    total = squares.sum()
    order = np.argsort(-squares, kind="stable")[:_LARGEST_DIMS]
    return {str(dim): float(squares[dim] / total) for dim in order.tolist() if squares[dim] > 0}


def token_norms(store: FeatureStore, layer: str, images: np.ndarray) -> np.ndarray:
    """Lengths of the patch tokens of some images, (images · N,) float64; one image at a time."""
    tokens = (store.tokens(layer, np.array([image]))[0] for image in images)
    return np.concatenate([np.linalg.norm(each.astype(np.float64), axis=1) for each in tokens])

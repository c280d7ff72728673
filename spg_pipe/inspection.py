"""What an artefact holds, in a few lines: a store, an SAE, a detector or scores."""

from pathlib import Path
from typing import Any

import numpy as np

from spg_pipe.artifacts import read_json
from spg_pipe.errors import SpgError


def inspect(path: Path) -> dict[str, Any]:
    """Describe an artefact.

    Returns
    -------
    dict
        `kind` and what belongs to it; plain values.

    Raises
    ------
    SpgError
        If the path is no artefact of this project.
    """
    if (path / "zarr.json").is_file():
        return _store(path)
    if (path / "config.json").is_file():
        config = read_json(path / "config.json", "Artefact")
        kind = config.get("kind")
        if kind == "detector":
            return _detector(path)
        if kind == "sparse autoencoder":
            return {"kind": kind, "quality": read_json(path / "quality.json", "Quality"), **config}
        if kind == "scores":
            return _scores(path, config)
    raise SpgError(
        f"{path} is no feature store, sparse autoencoder, detector or scores folder. "
        "Look below artifacts/."
    )


def _store(path: Path) -> dict[str, Any]:
    from spg_pipe.store.reader import FeatureStore

    store = FeatureStore(path)
    table = store.table
    states = table["mask_state"].value_counts().to_dict()
    backbone = store.spec.backbone
    layers = {}
    for layer, shape in store.spec.layers.items():
        mean, std = store.array(f"mean_{layer}"), store.array(f"std_{layer}")
        mean_norm, std_norm = float(np.linalg.norm(mean)), float(np.linalg.norm(std))
        layers[layer] = {
            "grid": f"{shape.grid[0]}×{shape.grid[1]}",
            "patches": shape.patches,
            "dim": shape.dim,
            "prefix": list(shape.prefix),
            "mean_norm": mean_norm,
            "std_norm": std_norm,
            "gamma": mean_norm / max(std_norm, 1e-12),
            "constant_dims": int((std == 0).sum()),
        }
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "kind": "feature store",
        "dataset": store.spec.dataset,
        "split": store.spec.split,
        "images": len(store),
        "normal": int((table["label"] == 0).sum()),
        "anomalous": int((table["label"] == 1).sum()),
        "unknown": int((table["label"] == 255).sum()),
        "masks": {
            "empty": states.get(0, 0),
            "given": states.get(1, 0),
            "missing": states.get(2, 0),
        },
        "categories": table["category"].value_counts(sort=False).to_dict(),
        "backbone": f"{backbone.alias} ({backbone.model}), {backbone.norm}-norm",
        "image_size": store.image_size,
        "weights": f"{backbone.weights}, sha256 {backbone.weights_sha256[:16]}…",
        "layers": layers,
        "dtype": store.spec.dtype,
        "shards": store.spec.shards,
        "megabytes": round(size / 1e6, 1),
        "licences": list(store.licences),
        "notes": list(store.attributes["notes"]),
        "skipped": [str(bad) for bad in store.skipped],
        "fingerprint": store.fingerprint,
    }


def _detector(path: Path) -> dict[str, Any]:
    from spg_pipe.detector import Detector

    detector = Detector.load(path)
    atoms = {name: len(guides.atom_ids) for name, guides in detector.layers.items()}
    keys = ("auxiliary", "seed", "protocol", "tau", "detection", "score", "guides", "licences")
    backbone = detector.backbone
    return {
        "kind": "detector",
        "backbone": f"{backbone.alias} ({backbone.model}), {backbone.norm}-norm",
        "image_size": backbone.preprocess.size,
        "atoms_used": atoms,
        **{key: detector.config[key] for key in keys},
        "fingerprint": detector.fingerprint,
    }


def _scores(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    from spg_pipe.scoring import Scores

    table = Scores.load(path).table
    return {
        "kind": "scores",
        "images": len(table),
        "score_min": float(table["score"].min()),
        "score_max": float(table["score"].max()),
        **{key: config[key] for key in ("dataset", "split", "detector", "score", "licences")},
        "fingerprint": config["fingerprint"],
    }


def as_text(content: dict[str, Any], indent: int = 0) -> str:
    """Nested values as indented lines."""
    lines = []
    for key, value in content.items():
        head = " " * indent + f"{key}: "
        if isinstance(value, dict) and value:
            lines.append(head.rstrip())
            lines.append(as_text(value, indent + 2))
        elif isinstance(value, list | tuple):
            lines.append(head + (", ".join(map(str, value)) or "none"))
        elif isinstance(value, float):
            lines.append(head + f"{value:.6g}")
        else:
            lines.append(head + str(value))
    return "\n".join(lines)

"""What an artefact holds, in a few lines: a store, an SAE, a detector or scores."""

from pathlib import Path
from typing import Any

from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import SpgError
from spg_pipe.recipe.places import Place
from spg_pipe.sae.run import read_quality, read_sae_record
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.summary import summary


def inspect(path: Place) -> dict[str, Any]:
    """Describe an artefact.

    Returns
    -------
    dict
        `kind` and what belongs to it; plain values.

    An `SpgError` if the path is no artefact of this project.
    """
    if isinstance(path, str) or (path / "zarr.json").is_file():
        return summary(FeatureStore(path))
    for file, kind, described in _KINDS:
        if (path / file).is_file():
            return {"kind": kind, **described(path)}
    raise SpgError(
        f"{path} is no feature store, sparse autoencoder, detector or scores folder. "
        "Look below artifacts/."
    )


def _sae(path: Path) -> dict[str, Any]:
    layers = read_quality(path).layers
    quality = {layer: figures.model_dump(mode="json") for layer, figures in layers.items()}
    return {"quality": quality, **read_sae_record(path).model_dump(mode="json")}


def _detector(path: Path) -> dict[str, Any]:
    detector = Detector.load(path)
    keys = {"auxiliary", "seed", "protocol", "detection", "guides", "rule", "licences"}
    backbone = detector.record.backbone
    return {
        "backbone": f"{backbone.alias} ({backbone.model}), {backbone.norm}-norm",
        "image_size": backbone.preprocess.size,
        "atoms_used": {name: len(guides.atom_ids) for name, guides in detector.layers.items()},
        **detector.record.model_dump(mode="json", include=keys),
        "fingerprint": detector.fingerprint,
    }


def _scores(path: Path) -> dict[str, Any]:
    keys = {"dataset", "split", "detector", "rule", "licences", "fingerprint"}
    scores = Scores.load(path)
    return {
        "method": scores.record.method,
        "supervision": scores.record.supervision,
        "images": len(scores.table),
        "score_min": float(scores.table["score"].min()),
        "score_max": float(scores.table["score"].max()),
        **scores.record.model_dump(mode="json", include=keys),
    }


_KINDS = (
    ("detector.safetensors", "detector", _detector),
    ("sae.safetensors", "sparse autoencoder", _sae),
    ("scores.parquet", "scores", _scores),
)
"""The file that tells an artefact's folder from others, its kind in words, what it holds."""


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

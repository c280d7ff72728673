"""A value a patch → Scores: maps are blurred as always, an image is the top of its map."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.decision.model import coarse_maps, top_mean
from spg_pipe.detector.judge import Judged
from spg_pipe.detector.scores import Scores, described, write_scores
from spg_pipe.guides.model import to_grid
from spg_pipe.recipe.params import SIGMA
from spg_pipe.store.reader import FeatureStore

PatchValues = Callable[[dict[str, Tensor], np.ndarray], dict[str, Tensor]]
"""Tokens, layer → (B, 1 + N, D), and their rows in the store (B,) → layer → (B, N), of any range:
higher is more anomalous."""

TOP_SHARE = 0.05
"""Share of a map, the highest, whose mean is the image score."""


@dataclass(frozen=True)
class Method:
    """A way to judge patches, and what it was made from."""

    name: str
    sees: str
    """What it was allowed to see besides the image that it judges."""
    values: PatchValues
    auxiliary: str = ""
    """The labelled dataset behind it, if any."""
    seed: int | None = None
    inputs: dict[str, str] | None = None
    """Fingerprints of what it was made from."""


def score_patchwise(
    method: Method, store: FeatureStore, path: Path, *, sigma: float = SIGMA, device: str = "cpu"
) -> Scores:
    """Judge every image of a store and write scores/<run>/."""
    content: dict[str, Any] = described(store) | {
        "method": method.name,
        "sees": method.sees,
        "score": {"rule": "additive", "sigma": sigma, "top_share": TOP_SHARE},
        "inputs": {"store": store.fingerprint} | (method.inputs or {}),
        "detector": {
            "auxiliary": {"dataset": method.auxiliary},
            "seed": method.seed,
            "protocol": {"name": "none"},
        },
    }
    shapes = {layer: store.spec.layers[layer].grid for layer in store.layers}
    done = 0

    def judge_batch(tokens: dict[str, Tensor]) -> Judged:
        nonlocal done
        count = len(next(iter(tokens.values())))
        rows = np.arange(done, done + count)
        done += count
        with torch.inference_mode():
            found = method.values(tokens, rows)
        patches = {
            layer: to_grid(values.float().cpu(), shapes[layer]) for layer, values in found.items()
        }
        return Judged(
            patches, {"score": top_mean(coarse_maps(patches, store.image_size, sigma), TOP_SHARE)}
        )

    return write_scores(store, path, judge_batch, content, device=device)

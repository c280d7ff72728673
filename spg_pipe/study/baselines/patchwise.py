"""A value a patch → Scores: maps are blurred as always, an image is the top of its map."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.decision.model import coarse_maps, top_mean
from spg_pipe.detector.judge import Judged
from spg_pipe.detector.record import ScoresRecord
from spg_pipe.detector.scores import Scores, of_store, write_scores
from spg_pipe.guides.model import to_grid
from spg_pipe.store.reader import FeatureStore

PatchValues = Callable[[dict[TokenKey, Tensor], np.ndarray], dict[TokenKey, Tensor]]
"""Tokens, key → (B, 1 + N, D), and their rows in the store (B,) → key → (B, N), of any range:
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
    method: Method, store: FeatureStore, path: Path, *, device: str = "cpu"
) -> Scores:
    """Judge every image of a store and write scores/<run>/."""
    record = ScoresRecord(
        **of_store(store),
        method=method.name,
        supervision=method.sees,
        log_odds=True,
        seed=method.seed,
        auxiliary=method.auxiliary,
        made_from=method.inputs or {},
        licences=tuple(sorted(store.licences)),
    )
    shapes = {layer: store.spec.layers[layer].grid for layer in store.layers}
    done = 0

    def judge_batch(tokens: dict[str, Tensor]) -> Judged:
        nonlocal done
        count = len(next(iter(tokens.values())))
        rows = np.arange(done, done + count)
        done += count
        with torch.inference_mode():
            found = method.values(store.spec.backbone.keyed(tokens), rows)
        patches = {
            key.name: to_grid(values.float().cpu(), shapes[key.name])
            for key, values in found.items()
        }
        return Judged(
            patches, {"score": top_mean(coarse_maps(patches, store.image_size), TOP_SHARE)}
        )

    return write_scores(store, path, judge_batch, record, device=device)

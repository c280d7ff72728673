"""A value for each patch → Scores: maps are blurred as always, an image is the top of its map."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.decision.model import coarse_maps, top_mean
from spg_pipe.detector.judge import Judged
from spg_pipe.detector.record import ScoresRecord
from spg_pipe.detector.scores import Scores, write_scores
from spg_pipe.guides.model import to_grid
from spg_pipe.store.reader import FeatureStore

TOP_SHARE = 0.05
"""Share of a map, the highest, whose mean is the image score."""


@dataclass(frozen=True)
class Baseline:
    """A way to judge patches, and what it was made from."""

    name: str
    supervision: str
    """What it was allowed to see besides the image that it judges."""
    values: Callable[[TokenKey, Tensor, np.ndarray], Tensor]
    """Key of a layer, its tokens (B, 1 + N, D), their rows in the store (B,) → (B, N), of any
    range: higher is more anomalous."""
    auxiliary: str = ""
    """The labelled dataset behind it, if any."""
    seed: int | None = None
    made_from: dict[str, str] = field(default_factory=dict)
    """Fingerprints of its inputs."""


def score_patchwise(
    baseline: Baseline, store: FeatureStore, path: Path, *, device: str = "cpu"
) -> Scores:
    """Judge every image of a store and write scores/<run>/."""
    record = ScoresRecord.of_store(
        store,
        method=baseline.name,
        supervision=baseline.supervision,
        log_odds=True,
        seed=baseline.seed,
        auxiliary=baseline.auxiliary,
        made_from=baseline.made_from,
        licences=tuple(sorted(store.spec.licences)),
    )
    done = 0

    def judge_batch(tokens: dict[str, Tensor]) -> Judged:
        nonlocal done
        rows = np.arange(done, done + len(next(iter(tokens.values()))))
        done += len(rows)
        patches = {}
        with torch.inference_mode():
            for key, batch in store.spec.backbone.keyed(tokens).items():
                values = baseline.values(key, batch, rows).float().cpu()
                patches[key.name] = to_grid(values, store.spec.layers[key.name].grid)
        tops = top_mean(coarse_maps(patches, store.image_size), TOP_SHARE)
        return Judged(patches, {"score": tops})

    return write_scores(store, path, judge_batch, record, device=device)

"""Figures of many directions on a target, from one pass over its tokens.

All after the guides is linear but for the choice of the highest pixels. All else of the decision
stays as it is: scales, weights and, where they are not left out, self-distances.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.decision.components import self_distance
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.decision.model import COARSE, MAP_TOP, Decision, top_mean
from spg_pipe.detector.model import Detector
from spg_pipe.guides.model import detection_feature, to_grid, unit
from spg_pipe.metrics.curves import Groups, auroc, average_precision
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import ordered_batches, sources_of
from spg_pipe.study.audit_case import Directions, Place
from spg_pipe.study.held_out import image_auroc, known_mean

BINS = 8192
"""Of pixels' values in [0, 1]: around zero a thousandth of log odds each."""
_IMAGES = 4
_LEAST = 1e-7
"""A map's probability, at least, and less than 1 by that at least."""


class Unlike(NamedTuple):
    """What a layer's self-distances add."""

    basis: Tensor
    """(D, m) that they are measured in: of the detector's own atoms, whatever directions judge."""
    in_map: float
    in_score: float


@dataclass(frozen=True)
class Reading:
    """How a detector reads maps and scores from what its guides say."""

    scales: Mapping[str, float]
    """Layer → by which x·d of its patches is multiplied."""
    detection: Mapping[str, float]
    """Layer → the same of x·d of the image's feature, in its score; none where it is not used."""
    top: float
    """Weight of the mean of the highest pixels in the score."""
    top_share: float
    """Which pixels; 0: the highest one alone."""
    probabilities: bool
    """Whether layers are averaged as probabilities (the published rule), or as log odds."""
    unlike: Mapping[str, Unlike] = field(default_factory=dict)
    """Of each layer; empty: guides alone."""

    @classmethod
    def of(cls, detector: Detector, *, whole: bool = False) -> "Reading":
        """By the detector's own rule; the published one with the maximum as its image score.

        Parameters
        ----------
        whole : bool
            With self-distances.
        """
        layers = detector.layers
        if detector.record.rule.rule == "published":
            return cls(dict.fromkeys(layers, 1.0), {}, 1.0, 0.0, probabilities=True)
        decision: Decision = detector.decision
        terms, scales = decision.terms, decision.scales
        weight = {n: terms[n].weight / terms[n].deviation if n in terms else 0.0 for n in _TERMS}
        return cls(
            {n: decision.map_weights.guides / scales[n]["guides"].deviation for n in layers},
            {
                layer: weight["detection"]
                / len(layers)
                / scales[layer]["image_detection"].deviation
                for layer in layers
                if weight["detection"] and "image_detection" in scales[layer]
            },
            weight[MAP_TOP],
            decision.top_share,
            probabilities=False,
            unlike={
                layer: Unlike(
                    guides.basis,
                    decision.map_weights.self_distance / scales[layer]["self_distance"].deviation,
                    weight["self_distance"]
                    / len(layers)
                    / scales[layer]["image_self_distance"].deviation,
                )
                for layer, guides in (layers if whole else {}).items()
            },
        )


_TERMS = (MAP_TOP, "detection", "self_distance")


def judge(
    store: FeatureStore,
    variants: Sequence[Directions],
    reading: Reading,
    whole: Directions,
    normal: Mapping[str, Tensor],
) -> np.ndarray:
    """Figures of every variant on a target, from one pass over its tokens.

    Parameters
    ----------
    whole : the detector's own directions
        What a variant lacks of them is replaced by its value at `normal`.
    normal : dict of layer → (D,)
        Mean unit token of normal auxiliary patches.

    Returns
    -------
    (variants, 3) `held_out.FIGURES`, means over categories, of maps at a quarter of the size
    """
    rows = {place: torch.stack([each[place] for each in variants]) for place in whole}
    absent = {
        layer: (whole[layer, "patches"] - rows[layer, "patches"]) @ normal[layer]
        for layer in store.layers
    }
    masks = coarse_masks(store)
    categories = np.unique(store.array("category").astype(object), return_inverse=True)[1]
    counts = torch.zeros(categories.max() + 1, len(variants) * 2 * BINS, dtype=torch.int64)
    known = store.array("mask_state") != MaskState.MISSING
    scores = np.zeros((len(store), len(variants)))
    with torch.inference_mode():
        for images, tokens in ordered_batches(sources_of(store, "cpu", "none"), _IMAGES):
            unlike = {
                layer: self_distance(
                    unit(tokens[layer][:, 1:]) @ of.basis, store.spec.layers[layer].grid
                )
                for layer, of in reading.unlike.items()
            }
            maps = _maps(store, tokens, unlike, rows, absent, reading)
            tops = top_mean(maps.flatten(0, 1).numpy(), reading.top_share)
            scores[images] = reading.top * tops.reshape(maps.shape[:2])
            for (layer, view), each in rows.items():
                if view != "patches" and layer in reading.detection:
                    feature = unit(detection_feature(tokens[layer], view))
                    scores[images] += reading.detection[layer] * (feature @ each.t()).numpy()
            for layer, values in unlike.items():
                tops = top_mean(values.numpy(), reading.top_share)
                scores[images] += reading.unlike[layer].in_score * tops[:, None]
            for image, of_image in zip(images.tolist(), maps, strict=True):
                if known[image]:
                    counts[categories[image]] += _histogram(of_image, masks[image])
    pixels = [[_pixel_figures(c) for c in of.unflatten(0, (-1, 2, BINS))] for of in counts]
    labels = store.array("label").astype(np.int64)
    of_images = [image_auroc(labels, categories, column) for column in scores.T]
    return np.column_stack([of_images, known_mean(pixels)])


def _maps(
    store: FeatureStore,
    tokens: Mapping[str, Tensor],
    unlike: Mapping[str, Tensor],
    rows: Mapping[Place, Tensor],
    absent: Mapping[str, Tensor],
    reading: Reading,
) -> Tensor:
    """(B, F, side, side) maps of F variants, log odds."""
    side, by_grid = max(1, store.image_size // COARSE), dict[tuple[int, int], Tensor]()
    for layer, batch in tokens.items():
        grid = store.spec.layers[layer].grid
        products = unit(batch[:, 1:]) @ rows[layer, "patches"].t() + absent[layer]
        values = reading.scales[layer] * products.transpose(1, 2)
        values = values.sigmoid() if reading.probabilities else values
        if layer in unlike:
            values = values + reading.unlike[layer].in_map * unlike[layer][:, None]
        by_grid[grid] = by_grid.get(grid, torch.zeros(())) + values / len(tokens)
    total = torch.zeros(())
    for (h, w), values in by_grid.items():
        left, right = _axis(h, store.image_size, side), _axis(w, store.image_size, side)
        total = total + left @ (to_grid(values.flatten(0, 1), (h, w)) @ right.t())
    odds = total.logit(_LEAST) if reading.probabilities else total
    return odds.unflatten(0, (-1, len(next(iter(absent.values())))))


def _axis(cells: int, size: int, side: int) -> Tensor:
    """(side, cells): what `anomaly_maps` does to one axis, its blur with it."""
    rows = torch.eye(cells)[:, :, None].expand(-1, -1, cells)
    return torch.from_numpy(anomaly_maps({"": rows}, size, at=(side, side))[:, :, 0].T.copy())


def coarse_masks(store: FeatureStore) -> Tensor:
    """(n, side, side) bool; a quarter of a pixel makes it defective, as in `held_out`."""
    side, parts = max(1, store.image_size // COARSE), []
    for start in range(0, len(store), 64):
        rows = np.arange(start, min(start + 64, len(store)))
        masks = torch.from_numpy(store.masks(rows)).float()[:, None]
        parts.append(F.adaptive_avg_pool2d(masks, side)[:, 0] >= 0.25)
    return torch.cat(parts)


def _histogram(maps: Tensor, mask: Tensor) -> Tensor:
    """(F·2·BINS,) pixels of an image's maps (F, s, s), by variant, mask (s, s) and value."""
    odds = maps / 4
    bins = ((0.5 + odds / (2 + 2 * odds.abs())) * BINS).long().clamp_(0, BINS - 1)
    bins += BINS * (mask + 2 * torch.arange(len(maps))[:, None, None])
    return torch.bincount(bins.flatten(), minlength=2 * BINS * len(maps))


def _pixel_figures(counts: Tensor) -> tuple[float, float]:
    """Pixel AUROC and AP of counts (2, BINS): normal, anomalous."""
    normal, anomalous = counts.flip(1).numpy()
    groups = Groups(np.empty(0), normal, anomalous, np.empty(0))
    return auroc(groups), average_precision(groups)

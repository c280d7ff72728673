"""Figures of many directions on a target, from one pass over its tokens.

All after the guides is linear but for the choice of the highest pixels, so an image is judged by
many directions as many images are by one. All else of the decision stays as it is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from spg_pipe.decision.components import Components, Sides, components
from spg_pipe.decision.maps import SIGMA, axis_weights, finished
from spg_pipe.decision.model import COARSE, MAP_TOP, Decision, top_mean
from spg_pipe.detector.coarse import coarse_pixels, image_auroc, known_mean
from spg_pipe.detector.model import Detector
from spg_pipe.guides.model import to_grid
from spg_pipe.metrics.curves import Groups, auroc, average_precision
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import ordered_batches, sources_of
from spg_pipe.study.audit_case import Directions

BINS = 8192
"""Of pixels' values in [0, 1]: around zero a thousandth of log odds each."""
SELF_DISTANCE = "self_distance"
_IMAGES = 4
_LEAST = 1e-7
"""A map's probability, at least, and less than 1 by that at least."""


def by_guides_alone(decision: Decision) -> Decision:
    """A decision without its self-distances."""
    weights = decision.map_weights.model_copy(update={SELF_DISTANCE: 0.0})
    terms = {name: term for name, term in decision.terms.items() if name != SELF_DISTANCE}
    return decision.model_copy(update={"map_weights": weights, "terms": terms})


def judge_directions(
    store: FeatureStore,
    variants: Sequence[Directions],
    detector: Detector,
    decision: Decision | None,
    normal: Mapping[str, Tensor],
) -> np.ndarray:
    """Figures of a detector on a target with other directions in the place of its own.

    Parameters
    ----------
    variants : F of (layer, view) → (D,)
        What they lack of the detector's own directions is replaced by its value at `normal`;
        self-distances are measured in the span of the detector's own atoms.
    decision : Decision or None
        How maps and scores are made; None: by the published rule, with the map's maximum as the
        image score.
    normal : dict of layer → (D,)
        Mean unit token of normal auxiliary patches.

    Returns
    -------
    (F, 3) `coarse.FIGURES`, means over categories, of maps at a quarter of the size
    """
    sides, absent, masks = {}, {}, dict(coarse_pixels(store))
    compared = decision and (decision.map_weights.self_distance or SELF_DISTANCE in decision.terms)
    for layer, guides in detector.layers.items():
        rows = {view: torch.stack([of[layer, view] for of in variants]) for view in guides.pairs}
        sides[layer] = Sides(rows, guides.basis if compared else guides.basis[:, :0])
        own = guides.directions(as_cosines=not detector.contrast)["patches"]
        absent[layer] = (own - rows["patches"]) @ normal[layer]
    categories = np.unique(store.array("category").astype(object), return_inverse=True)[1]
    counts = torch.zeros(categories.max() + 1, len(variants) * 2 * BINS, dtype=torch.int64)
    scores = np.zeros((len(store), len(variants)))
    with torch.inference_mode():
        for images, tokens in ordered_batches(sources_of(store, "cpu", "none"), _IMAGES):
            raw = {
                layer: _one_by_one(
                    components(tokens[layer], each, store.spec.layers[layer].grid), absent[layer]
                )
                for layer, each in sides.items()
            }
            maps = _maps(store, raw, decision)
            found = top_mean(maps.numpy(), decision.top_share if decision else 0.0)
            if decision:
                values = {MAP_TOP: found} | decision.image_values(raw.items())
                found = np.sum([*decision.shares(values).values()], axis=0)
            scores[images] = found.reshape(len(images), -1)
            for image, of_image in zip(images.tolist(), maps.chunk(len(images)), strict=True):
                if image in masks:
                    mask = torch.from_numpy(masks[image])
                    counts[categories[image]] += _histogram(of_image, mask)
    pixels = [[_pixel_figures(c) for c in of.unflatten(0, (-1, 2, BINS))] for of in counts]
    labels = store.array("label").astype(np.int64)
    of_images = [image_auroc(labels, categories, column) for column in scores.T]
    return np.column_stack([of_images, known_mean(pixels)])


def _one_by_one(raw: Components, absent: Tensor) -> Components:
    """Components of B images by F directions as those of B·F images, with F = 1.

    `absent` (F,) is added to what the directions say of patches.
    """
    count = len(absent)
    detection = None if raw.detection is None else raw.detection.flatten()[:, None]
    return Components(
        (raw.guides + absent[:, None]).flatten(0, 1)[:, None],
        raw.self_distance.repeat_interleave(count, dim=0),
        detection,
    )


def _maps(
    store: FeatureStore, layers: Mapping[str, Components], decision: Decision | None
) -> Tensor:
    """(B, side, side) maps of log odds: `coarse_maps`, of all images at once."""
    size, total = store.image_size, torch.zeros(())
    side = max(1, size // COARSE)
    for layer, raw in layers.items():
        odds = decision.log_odds(layer, raw) if decision else raw.guides[:, 0].sigmoid()
        grid = store.spec.layers[layer].grid
        left, right = (axis_weights(cells, size, SIGMA, side).float() for cells in grid)
        total = total + left @ (to_grid(odds, grid) @ right.t()) / len(layers)
    return total if decision else total.logit(_LEAST)


def _histogram(maps: Tensor, mask: Tensor) -> Tensor:
    """(F·2·BINS,) pixels of an image's maps (F, s, s), by variant, mask (s, s) and value."""
    bins = (finished(maps) * BINS).long().clamp_(0, BINS - 1)
    bins += BINS * (mask + 2 * torch.arange(len(maps))[:, None, None])
    return torch.bincount(bins.flatten(), minlength=2 * BINS * len(maps))


def _pixel_figures(counts: Tensor) -> tuple[float, float]:
    """Pixel AUROC and AP of counts (2, BINS): normal, anomalous."""
    normal, anomalous = counts.flip(1).numpy()
    groups = Groups(np.empty(0), normal, anomalous, np.empty(0))
    return auroc(groups), average_precision(groups)

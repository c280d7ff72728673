"""Settings of contrast guides and the decision, judged on held-out parts of the auxiliary set.

No target is looked at. Each part in turn is judged by guides, scales and weights made from the
others; a part is a set of a union, a category, a kind of defect, or else a fold. One pass over the
store serves all candidates.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.decision.fit import Labelled, Seen, fit_seen, grids_of, image_values, look
from spg_pipe.decision.model import COARSE, Decision
from spg_pipe.errors import SpgError
from spg_pipe.guides.contrast import VIEWS, ClassSums, Dictionary, class_sums, direction
from spg_pipe.maps import anomaly_maps
from spg_pipe.metrics import Regions, accumulate, image_metrics
from spg_pipe.params import DecisionParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore

Progress = Callable[[int, int], None]

TOLERANCE = 0.005
"""A candidate must be better by this than an earlier one: smaller differences are chance."""


@dataclass(frozen=True)
class Candidate:
    """Settings to judge."""

    saes: SaeRun
    atoms: int
    decision: DecisionParams


@dataclass(frozen=True)
class PartResult:
    """How a candidate did on one part that it was not made from; NaN where it is undefined."""

    part: str
    image_auroc: float
    pixel_auroc: float
    pixel_ap: float


@dataclass(frozen=True)
class Judgement:
    """A candidate's results on all parts."""

    parts: tuple[PartResult, ...]

    def mean(self, metric: str) -> float:
        """Mean over the parts where a metric is defined; NaN if there is none."""
        values = [value for part in self.parts if not math.isnan(value := getattr(part, metric))]
        return float(np.mean(values)) if values else math.nan

    @property
    def merit(self) -> float:
        """Mean of the image AUROC, the pixel AUROC and the pixel AP, as far as they are defined."""
        means = [self.mean(metric) for metric in ("image_auroc", "pixel_auroc", "pixel_ap")]
        known = [mean for mean in means if not math.isnan(mean)]
        return float(np.mean(known)) if known else math.nan


def best(judgements: Sequence[Judgement]) -> int:
    """The candidate to take: the first of those that no other beats by `TOLERANCE`.

    Raises
    ------
    SpgError
        If there is nothing to judge by.
    """
    merits = [judgement.merit for judgement in judgements]
    if any(math.isnan(merit) for merit in merits):
        raise SpgError(
            "No held-out part has anomalous and normal pixels at a quarter of the size, so nothing "
            "can be chosen on this set. Its masks may be too thin: use a larger image_size."
        )
    return next(n for n, merit in enumerate(merits) if merit >= max(merits) - TOLERANCE)


def held_out_parts(store: FeatureStore, sums: ClassSums) -> dict[str, np.ndarray]:
    """Name → (n,) bool of the images that are held out together.

    Raises
    ------
    SpgError
        If the set cannot be parted.
    """
    categories = store.array("category").astype(object)
    taught = (sums.labels == 1) & (store.array("mask_state") == MaskState.GIVEN)
    for names in (np.array([name.partition("/")[0] for name in categories]), categories):
        found = {str(name): names == name for name in np.unique(names)}
        found = {name: rows for name, rows in found.items() if (rows & taught).any()}
        if len(found) > 1:
            return found
    kinds = store.array("defect").astype(object)
    # Those without a mask are held out with their kind: they teach about images.
    anomalous = sums.labels == 1
    found = {str(kind): (kinds == kind) & anomalous for kind in np.unique(kinds[taught])}
    if len(found) < 2:
        found = {f"fold {fold}": (sums.folds == fold) & anomalous for fold in np.unique(sums.folds)}
        found = {name: rows for name, rows in found.items() if (rows & taught).any()}
    if len(found) < 2:
        raise SpgError(
            f"{store.path} has {taught.sum()} anomalous images with a mask: too few to hold some "
            "out. Choosing needs at least two."
        )
    normal = np.flatnonzero(sums.labels == 0)
    for number, rows in enumerate(found.values()):
        rows[normal[number :: len(found)]] = True
    return found


def judge_candidates(
    store: FeatureStore,
    candidates: Sequence[Candidate],
    sigma: float,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Judgement]:
    """Judge every candidate on every held-out part.

    Maps are compared with masks at a quarter of S: enough to rank settings, and sixteen times less
    to do.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary set.
    sigma : float
        Blur of the maps, pixels at S×S.
    progress : callable (candidates done, candidates in all), optional

    Raises
    ------
    SpgError
        If the set cannot be parted, or without a part nothing is left to learn from.
    """
    sums = class_sums(store, device)
    parts, images = held_out_parts(store, sums), Labelled.of(store)
    makers = {(id(one.saes), one.atoms): one for one in candidates}
    keys = [(maker, part) for maker in makers for part in parts]
    made = [_views(store, makers[maker], sums, ~parts[part], part) for maker, part in keys]
    # A view that one of them lacks keeps its place; `_without` sees that it is not used.
    directions = {
        layer: {view: torch.stack([one[layer][view] for one in made]) for view in VIEWS}
        for layer in store.layers
    }
    seen = look(store, directions, device=device)
    regions = _coarse_masks(store)
    results = []
    for number, one in enumerate(candidates):
        found = []
        for name, rows in parts.items():
            which = keys.index(((id(one.saes), one.atoms), name))
            lacking = [
                v for v in VIEWS if not any(bool(made[which][n][v].any()) for n in made[which])
            ]
            params = _without(one.decision, lacking)
            found.append(_judge(seen, images, params, sigma, which, rows, name, regions))
        results.append(Judgement(tuple(found)))
        if progress:
            progress(number + 1, len(candidates))
    return results


def _views(
    store: FeatureStore, maker: Candidate, sums: ClassSums, chosen: np.ndarray, part: str
) -> dict[str, dict[str, Tensor]]:
    """Layer → view → (D,) made from the chosen images; zeros where they lack a class."""
    found: dict[str, dict[str, Tensor]] = {}
    for layer in store.layers:
        dictionary = Dictionary.of(maker.saes, layer)
        found[layer] = {}
        for view in VIEWS:
            pair = dictionary.match(direction(sums, layer, view, chosen), maker.atoms)
            zeros = torch.zeros(dictionary.atoms.shape[1])
            found[layer][view] = zeros if pair is None else dictionary.side(pair)
        if not bool(found[layer]["patches"].any()):
            raise SpgError(
                f"{store.path}: without {part} no category has patches with and without a defect, "
                "so nothing can be chosen on it. Add another auxiliary category."
            )
    return found


def _without(params: DecisionParams, views: Sequence[str]) -> DecisionParams:
    """The same without the image components of some views."""
    image = params.image.model_copy(update=dict.fromkeys(views, 0.0))
    return params.model_copy(update={"image": image})


def _judge(
    seen: dict[str, Seen],
    images: Labelled,
    params: DecisionParams,
    sigma: float,
    which: int,
    rows: np.ndarray,
    name: str,
    regions: dict[int, Regions],
) -> PartResult:
    fit = fit_seen(seen, images, params, sigma, final=which, honest=which, among=~rows)
    found = [
        _category(fit.decision, seen, images, sigma, which, own, regions)
        for own in _by_category(images, rows)
    ]
    means = (_mean(column) for column in zip(*found, strict=True))
    return PartResult(name, *means)


def _by_category(images: Labelled, rows: np.ndarray) -> list[np.ndarray]:
    return [
        rows & (images.categories == category) for category in np.unique(images.categories[rows])
    ]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _category(
    decision: Decision,
    seen: dict[str, Seen],
    images: Labelled,
    sigma: float,
    which: int,
    rows: np.ndarray,
    regions: dict[int, Regions],
) -> tuple[float, float, float]:
    """Image AUROC, pixel AUROC and pixel AP of one category's held-out images."""
    values = image_values(decision, seen, which, images.size, sigma, rows)
    total = np.sum(list(decision.shares(values).values()), axis=0)
    image_auroc = image_metrics(images.labels[rows], total).auroc

    def pairs() -> Iterator[tuple[np.ndarray, Regions]]:
        for image in np.flatnonzero(rows):
            if int(image) in regions:
                place = regions[int(image)]
                yield _map(decision, seen, which, int(image), images.size, sigma, place), place

    if not any(int(image) in regions for image in np.flatnonzero(rows)):
        return image_auroc, math.nan, math.nan
    pixel = accumulate(pairs, "histogram")
    return image_auroc, pixel.auroc, pixel.ap


def _map(
    decision: Decision,
    seen: dict[str, Seen],
    which: int,
    image: int,
    size: int,
    sigma: float,
    place: Regions,
) -> np.ndarray:
    grids = grids_of(decision, seen, which, np.array([image]))
    return anomaly_maps(grids, size, sigma, place.shape, log_odds=True)[0]


def _coarse_masks(store: FeatureStore) -> dict[int, Regions]:
    """Image → regions of its mask at S/4; a quarter of a pixel makes it defective (thin cracks)."""
    side = max(1, store.image_size // COARSE)
    states, found = store.array("mask_state"), {}
    for start in range(0, len(store), 64):
        rows = np.arange(start, min(start + 64, len(store)))
        masks = torch.from_numpy(store.masks(rows)).float()[:, None]
        coarse = (F.adaptive_avg_pool2d(masks, side)[:, 0] >= 0.25).numpy()
        for row, mask in zip(rows.tolist(), coarse, strict=True):
            if states[row] != MaskState.MISSING:
                found[row] = Regions.of(mask)
    return found

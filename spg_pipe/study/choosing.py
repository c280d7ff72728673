"""Settings of contrast guides and the decision, judged on held-out parts of the auxiliary set.

No target is looked at. Each part in turn is judged by guides, scales and weights made from the
others; a part is a set of a union, a category, a kind of defect, or else a fold. One pass over the
store serves all candidates.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.decision.fit import Labelled, Seen, fit_seen, grids_of, image_values, look
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.decision.model import COARSE, Decision
from spg_pipe.errors import SpgError, UnsuitableError
from spg_pipe.guides.contrast import ClassSums, Dictionary, class_sums, direction
from spg_pipe.guides.layer import VIEWS
from spg_pipe.metrics import Regions, accumulate, image_metrics
from spg_pipe.recipe.params import DecisionParams
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
    UnsuitableError
        If there is nothing to judge by.
    """
    merits = [judgement.merit for judgement in judgements]
    if any(math.isnan(merit) for merit in merits):
        raise UnsuitableError(
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
    progress : callable (candidates done, candidates in all), optional

    Raises
    ------
    SpgError
        If the set cannot be parted, or without a part nothing is left to learn from.
    """
    shared = look_at_parts(store, candidates, device)
    results = []
    for number, one in enumerate(candidates):
        parts = [_judge(shared, one, part) for part in shared.parts]
        results.append(Judgement(tuple(parts)))
        if progress:
            progress(number + 1, len(candidates))
    return results


@dataclass(frozen=True)
class Looked:
    """What was seen of the auxiliary set by guides made without each of its parts."""

    parts: dict[str, np.ndarray]
    """Name → (n,) bool: held out together."""
    images: Labelled
    seen: dict[str, Seen]
    regions: dict[int, Regions]
    """Image → its mask's at S/4."""
    made: "dict[tuple[int, int, str], tuple[int, dict[str, dict[str, Tensor]]]]"
    """SAE, atoms and part → which of `seen`'s guides, and their directions."""

    def decide(self, one: Candidate, part: str) -> tuple[Decision, int]:
        """A candidate's decision, made without a part, and which of `seen`'s guides are its."""
        which, views = self.made[id(one.saes), one.atoms, part]
        lacking = [v for v in VIEWS if not any(bool(views[n][v].any()) for n in views)]
        params, among = _without(one.decision, lacking), ~self.parts[part]
        fit = fit_seen(self.seen, self.images, params, final=which, honest=which, among=among)
        return fit.decision, which

    def categories(self, part: str) -> list[np.ndarray]:
        """(n,) bool of each category's images in a part."""
        rows, names = self.parts[part], self.images.categories
        return [rows & (names == name) for name in np.unique(names[rows])]


def look_at_parts(store: FeatureStore, candidates: Sequence[Candidate], device: str) -> Looked:
    """One pass over the store for all candidates and parts.

    Raises
    ------
    SpgError
        If the set cannot be parted, or without a part nothing is left to learn from.
    """
    sums = class_sums(store, device)
    parts = held_out_parts(store, sums)
    makers = {(id(one.saes), one.atoms): one for one in candidates}
    views = {
        (*key, part): _views(store, maker, sums, ~rows, part)
        for key, maker in makers.items()
        for part, rows in parts.items()
    }
    # A view that one of them lacks keeps its place; `_without` sees that it is not used.
    directions = {
        layer: {view: torch.stack([one[layer][view] for one in views.values()]) for view in VIEWS}
        for layer in store.layers
    }
    seen = look(store, directions, device=device)
    made = {key: (which, views[key]) for which, key in enumerate(views)}
    return Looked(parts, Labelled.of(store), seen, _coarse_masks(store), made)


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


def _judge(shared: Looked, one: Candidate, part: str) -> PartResult:
    decision, which = shared.decide(one, part)

    def of(rows: np.ndarray) -> CategoryResult:
        values = image_values(decision, shared.seen, which, shared.images.size, rows)
        total = np.sum(list(decision.shares(values).values()), axis=0)
        grids = partial(grids_of, decision, shared.seen, which)
        return judge_images(shared.images, rows, total), *judge_pixels(shared, rows, grids)

    return part_result(part, [of(rows) for rows in shared.categories(part)])


CategoryResult = tuple[float, float, float]
"""Image AUROC, pixel AUROC and pixel AP; NaN where undefined."""


def part_result(part: str, categories: Sequence[CategoryResult]) -> PartResult:
    """Means over the categories of a part, as far as they are defined."""
    return PartResult(part, *(_mean(column) for column in zip(*categories, strict=True)))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def judge_images(images: Labelled, rows: np.ndarray, total: np.ndarray) -> float:
    """Image AUROC of some images, (n,) bool, by their scores (rows.sum(),)."""
    return image_metrics(images.labels[rows], total).auroc


def judge_pixels(
    shared: Looked,
    rows: np.ndarray,
    grids: Callable[[np.ndarray], dict[str, Tensor]],
) -> tuple[float, float]:
    """Pixel AUROC and AP of one category's held-out images; NaN where no mask is known.

    Parameters
    ----------
    rows : (n,) bool
    grids : callable
        Of an image (1,) → layer → (1, h, w): log odds of its patches.
    """
    known = [image for image in np.flatnonzero(rows).tolist() if image in shared.regions]
    if not known:
        return math.nan, math.nan

    def pairs() -> Iterator[tuple[np.ndarray, Regions]]:
        for image in known:
            place, patches = shared.regions[image], grids(np.array([image]))
            size = shared.images.size
            yield anomaly_maps(patches, size, at=place.shape, log_odds=True)[0], place

    pixel = accumulate(pairs, "histogram")
    return pixel.auroc, pixel.ap


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

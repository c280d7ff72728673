"""What `compare` compares, and what each method was allowed to see.

A new baseline is a function in `baselines`, and a few lines in `entries`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from spg_pipe.backbones.base import Backbone
from spg_pipe.bank import few_shot
from spg_pipe.datasets.build import list_images
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Scores, score_store
from spg_pipe.errors import UnsuitableError
from spg_pipe.metrics.tables import seen_in
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.features import extract, load_backbone
from spg_pipe.pipeline.normals import say_known
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.places import Place
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.baselines import (
    Values,
    dissimilarity,
    logistic_regression,
    mahalanobis,
    mutual_scoring,
    score_patchwise,
    transductive,
)

PLUS = "spg-plus"
PUBLISHED = "SPG as published"
FREE = "free dense guides, trained"
TRAINED = (PUBLISHED, FREE)
UNLIKE = "intra-image dissimilarity"
MUTUAL = "mutual scoring"
Stores = Mapping[str, FeatureStore]
"""Name of a dataset → its store."""


Judge = Callable[[FeatureStore, Path], Scores]
"""A method that is ready: judges a target and writes scores to a path."""


@dataclass(frozen=True)
class Entry:
    """A method with one seed, and the targets that it judges."""

    method: str
    supervision: str
    """What it was allowed to see besides the images that it judges."""
    seed: int | None
    aux: str | None
    """The auxiliary set that it is made from; None: with any it would be the same."""
    targets: tuple[str, ...]
    make: Callable[["Entry"], Judge]
    """Makes the method of this entry, in the process that judges."""
    guides: str | None = None
    """The method whose guides of `aux` it takes, made in a job of their own."""

    @property
    def name(self) -> str:
        """As messages name it."""
        way = " → ".join([*([self.aux] if self.aux else []), ", ".join(self.targets)])
        return f"{self.method}, {way}" + ("" if self.seed is None else f", seed {self.seed}")


def entries(run: RecipeRun, stores: Stores, normals: int) -> Iterator[Entry]:
    """Every method with every seed that it depends on, in the order of the table.

    `normals` images of a target's train split are what few-shot methods see; they are extracted
    here.
    """
    yield from zero_shot(run, stores)
    backbone = cache(partial(load_backbone, run))  # once for all, if anyone needs it
    for target in dict.fromkeys(way.target for way in run.params.directions):
        yield from _few_shot(run, target, stores, normals, backbone)
        if len(np.unique(stores[target].array("category").astype(object))) > 1:
            run.console.say(
                f"No transductive method on {target}: its categories are products of their own, "
                "and mutual scoring takes one product at a time."
            )
            continue
        seed = run.params.seeds[0]  # by far the slowest, and its seed only draws the others
        path = Path(stores[target].path)
        fit = partial(
            by_baseline, choose_device(run.device), partial(mutual_scoring, seed=seed), [path]
        )
        yield Entry(MUTUAL, transductive(stores[target]), seed, None, (target,), fit)


def zero_shot(run: RecipeRun, stores: Stores) -> Iterator[Entry]:
    """Those of `entries` that see no image of the target but the one that they judge."""
    device, ways = choose_device(run.device), run.params.directions
    for aux in auxiliaries(run, stores):
        seen, path = seen_in(stores[aux].synthetic), Path(stores[aux].path)
        targets = tuple(way.target for way in ways if way.aux == aux)
        for seed in run.params.seeds:
            for method in (PLUS, *TRAINED):
                make = partial(by_detector, device, guides_path(run, method, aux, seed))
                yield Entry(method, seen, seed, aux, targets, make, guides=method)
            fit = partial(by_baseline, device, partial(logistic_regression, seed=seed), [path])
            yield Entry("logistic regression", seen, seed, aux, targets, fit)
    every = tuple(dict.fromkeys(way.target for way in ways))
    unlike = partial(by_baseline, device, dissimilarity, [])
    yield Entry(UNLIKE, "nothing", None, None, every, unlike)


def stores_of(run: RecipeRun) -> dict[str, FeatureStore]:
    """Of the recipe's directions; those with most images first: their jobs take longest."""
    names = {name for way in run.params.directions for name in (way.aux, way.target)}
    every = {name: checked_store(run, find_dataset(run.params, name)) for name in names}
    return dict(sorted(every.items(), key=lambda item: (-len(item[1]), item[0])))


def guides_path(run: RecipeRun, method: str, aux: str, seed: int) -> Path:
    """Where the detector of a method is: the recipe's own, or one for the comparison alone."""
    if method == PLUS:
        return run.paths.detector(aux, seed)
    return run.paths.compared(method, None, aux, seed)


def auxiliaries(run: RecipeRun, stores: Stores) -> list[str]:
    """Of the recipe's directions, in the order of the stores."""
    return [name for name in stores if any(way.aux == name for way in run.params.directions)]


def _few_shot(
    run: RecipeRun, target: str, stores: Stores, normals: int, backbone: Callable[[], Backbone]
) -> Iterator[Entry]:
    store = stores[target]
    try:
        paths = _normal_images(run, target, store, normals, backbone)
        images = few_shot.normals_of([FeatureStore(path) for path in paths], store)
    except UnsuitableError as error:
        run.console.say(f"No few-shot methods on {target}: {error}")
        return
    counts = few_shot.seen_of(images)
    if copies := sum(each.copies for each in images.values()):
        run.console.say(f"{target}: {few_shot.note_of_copies(copies, copies + sum(counts))}")
    known = store.table["path"][few_shot.known_images(images, store)].tolist()
    say_known(run, known, len(store), f" of few-shot methods on {target}")
    seen, path = few_shot.says(counts), store.path
    bank = partial(by_bank, run, path, paths)
    yield Entry(few_shot.BANK, seen, None, None, (target,), bank)
    gaussian = partial(by_baseline, choose_device(run.device), mahalanobis, [path, *paths])
    yield Entry("Mahalanobis", seen, None, None, (target,), gaussian)
    for way in (way for way in run.params.directions if way.target == target):
        both = f"{seen_in(stores[way.aux].synthetic)}; {seen}"
        for seed in run.params.seeds:
            make = partial(bank, detector=run.paths.detector(way.aux, seed))
            name = f"{PLUS} + {few_shot.BANK}"
            yield Entry(name, both, seed, way.aux, (target,), make, PLUS)


def _normal_images(
    run: RecipeRun,
    target: str,
    store: FeatureStore,
    normals: int,
    backbone: Callable[[], Backbone],
) -> tuple[Place, ...]:
    """Stores of some images of the train split, one for each category."""
    dataset = find_dataset(run.params, f"{target}/train")
    if not dataset.root.is_dir():
        raise UnsuitableError(f"the images of {dataset.name} are not here ({dataset.root}).")
    list_images(dataset)  # refuses a split that is not there before the backbone is loaded
    paths = (
        extract(run, dataset, limit=normals, categories=[category], backbone=backbone())
        for category in sorted(set(store.array("category").tolist()))
    )
    return tuple(dict.fromkeys(paths))


def by_detector(device: str, path: Path, _entry: Entry) -> Judge:
    """A detector of the recipe, or one that was made for the comparison alone (`making`)."""
    return partial(score_store, Detector.load(path), device=device)


def by_baseline(
    device: str, fit: Callable[..., Values], paths: Sequence[Place], entry: Entry
) -> Judge:
    """A baseline that is made from the stores at some paths."""
    stores = [FeatureStore(path) for path in paths]
    return partial(
        score_patchwise,
        fit(*stores),
        device=device,
        method=entry.method,
        supervision=entry.supervision,
        seed=entry.seed,
        auxiliary=entry.aux or "",
        made_from={Path(store.path).name: store.fingerprint for store in stores},
    )


def by_bank(
    run: RecipeRun,
    target: Place,
    normals: Sequence[Place],
    _entry: Entry,
    *,
    detector: Path | None = None,
) -> Judge:
    """Nearest neighbours in a few normal images, alone or as one more addend of a detector."""
    stores, device = [FeatureStore(path) for path in normals], choose_device(run.device)
    banks = few_shot.banks_of(stores, FeatureStore(target), run.params.bank, device=device)
    loaded = Detector.load(detector) if detector else None
    return partial(few_shot.score_few_shot, loaded, banks, device=device)

"""Who takes part in `compare`, what each was allowed to see, and the jobs that this makes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spg_pipe.errors import UnsuitableError
from spg_pipe.metrics.tables import seen_in
from spg_pipe.pipeline.checked import checked_detector, checked_sae
from spg_pipe.pipeline.datasets import find_dataset, names_on_disk
from spg_pipe.pipeline.features import extract, load_backbone
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.target import say_known
from spg_pipe.recipe.params import Dataset
from spg_pipe.study import contests
from spg_pipe.study.contests import Made
from spg_pipe.study.runner import Job
from spg_pipe.study.sweeps import is_there

if TYPE_CHECKING:
    from spg_pipe.backbones.base import Backbone
    from spg_pipe.store.reader import FeatureStore

PLUS = "spg-plus"
PUBLISHED = "SPG as published"
FREE = "free dense guides, trained"
MUTUAL = "mutual scoring"
Stores = Mapping[str, "FeatureStore"]


@dataclass(frozen=True)
class Contestant:
    """A method with one seed, and the targets that it judges."""

    method: str
    sees: str
    seed: int | None
    aux: str | None
    """The auxiliary set that it is made from; None: with any it would be the same."""
    targets: tuple[str, ...]
    make: Callable[[], Made]
    """In the process that judges."""
    guides: str | None = None
    """The method whose guides of `aux` it takes, made in a job of their own."""
    beside: str | None = None
    """Name of a contestant whose scores of its only target it goes on from."""

    @property
    def name(self) -> str:
        """As messages name it."""
        way = " → ".join([*([self.aux] if self.aux else []), ", ".join(self.targets)])
        return f"{self.method}, {way}" + ("" if self.seed is None else f", seed {self.seed}")


def contestants(
    run: RecipeRun, published: RecipeRun, stores: Stores, normals: int
) -> Iterator[Contestant]:
    """Every method with every seed that it depends on, in the order of the table.

    Parameters
    ----------
    published : RecipeRun
        The recipe with the published method.
    stores : dict of name → FeatureStore
    normals : int
        Images of a target's train split that few-shot methods see; they are extracted here.
    """
    own, other = _aside(run), _aside(published)
    ways = run.params.directions
    seeded = (
        (PLUS, contests.from_recipe, own, PLUS),
        (PUBLISHED, contests.from_recipe, other, PUBLISHED),
        (FREE, contests.free_guides, other, FREE),
        ("logistic regression", contests.logistic, own, None),
    )
    for method, make, one, guides in seeded:
        for aux in _auxes(run, stores):
            targets = tuple(way.target for way in ways if way.aux == aux)
            saw = seen_in(stores[aux].synthetic)
            for seed in run.params.seeds:
                ready = partial(make, one, aux, seed)
                yield Contestant(method, saw, seed, aux, targets, ready, guides)
    every = tuple(dict.fromkeys(way.target for way in ways))
    unlike = partial(contests.unlike_its_image, own)
    yield Contestant("intra-image dissimilarity", "nothing", None, None, every, unlike)
    backbone = cache(partial(load_backbone, run))  # once for all, if anyone needs it
    for target in every:
        yield from _few_shot(run, target, stores, normals, backbone)
        if len(np.unique(stores[target].array("category").astype(object))) > 1:
            run.console.say(
                f"No transductive method on {target}: its categories are products of their own, "
                "and mutual scoring takes one product at a time."
            )
            continue
        yield _transductive(own, target, stores[target])


def _few_shot(
    run: RecipeRun,
    target: str,
    stores: Stores,
    normals: int,
    backbone: "Callable[[], Backbone]",
) -> Iterator[Contestant]:
    from spg_pipe.bank.few_shot import BANK, known_images, normals_of, note_of_copies, says, seen_of
    from spg_pipe.store.reader import FeatureStore

    dataset, own = find_dataset(run.params, f"{target}/train"), _aside(run)
    store = stores[target]
    categories = sorted(set(store.array("category").tolist()))
    try:
        _require_images(dataset)  # before the backbone is loaded for them
        paths = tuple(
            dict.fromkeys(
                extract(run, dataset, limit=normals, categories=[one], backbone=backbone())
                for one in categories
            )
        )
        found = normals_of([FeatureStore(path) for path in paths], store)
    except UnsuitableError as error:
        run.console.say(f"No few-shot methods on {target}: {error}")
        return
    if copies := sum(one.copies for one in found.values()):
        run.console.say(f"{target}: {note_of_copies(copies, copies + sum(seen_of(found)))}")
    known = store.table["path"][known_images(found, store)].tolist()
    say_known(run, known, len(store), f" of few-shot methods on {target}")
    saw, place = says(seen_of(found)), Path(store.path)
    bank = partial(contests.bank, own, paths, place)
    alone = Contestant(BANK, saw, None, None, (target,), bank)
    yield alone
    gaussian = partial(contests.gaussian, own, paths, place)
    yield Contestant("Mahalanobis", saw, None, None, (target,), gaussian)
    distances = run.paths.compared(BANK, None, target, None)
    for way in run.params.directions:
        if way.target == target:
            for seed in run.params.seeds:
                make = partial(contests.fused, own, paths, place, distances, way.aux, seed)
                name, both = f"{PLUS} + {BANK}", f"{seen_in(stores[way.aux].synthetic)}; {saw}"
                yield Contestant(name, both, seed, way.aux, (target,), make, PLUS, alone.name)


def _require_images(dataset: Dataset) -> None:
    """Refuse a split that is not there."""
    if not dataset.root.is_dir():
        raise UnsuitableError(f"the images of {dataset.name} are not here ({dataset.root}).")
    names_on_disk(dataset)


def _transductive(own: RecipeRun, target: str, store: "FeatureStore") -> Contestant:
    from spg_pipe.study.baselines.mutual import transductive

    first = own.params.seeds[0]  # by far the slowest, and its seed only draws the others
    make = partial(contests.mutual, own, Path(store.path), first)
    return Contestant(MUTUAL, transductive(store), first, None, (target,), make)


def making_jobs(run: RecipeRun, published: RecipeRun, stores: Stores) -> Iterator[Job]:
    """A job for everything trained that is not there yet."""
    own, other, seeds = _aside(run), _aside(published), run.params.seeds
    for aux in _auxes(run, stores):
        for seed in seeds:
            if not is_there(partial(checked_sae, run, stores[aux], aux, seed)):
                yield Job(_sae(aux, seed), partial(contests.make_sae, own, aux, seed))
        free = [s for s in seeds if not contests.free_is_there(published, stores[aux], aux, s)]
        if free:
            yield Job(_guides(FREE, aux), partial(contests.make_free, other, aux, free))
        for method, one in ((PUBLISHED, other), (PLUS, own)):
            missing = [s for s in seeds if not is_there(partial(checked_detector, one, aux, s))]
            if missing:
                work = partial(contests.make_detectors, one, aux, missing)
                yield Job(_guides(method, aux), work, tuple(_sae(aux, seed) for seed in missing))


def judging_jobs(run: RecipeRun, entries: Sequence[Contestant], stores: Stores) -> Iterator[Job]:
    """A job a contestant; mutual scoring, the slowest, first."""
    first: dict[tuple[str, str | None], int | None] = {}
    for entry in entries:
        first.setdefault((entry.method, entry.aux), entry.seed)
    for entry in sorted(entries, key=lambda one: one.method != MUTUAL):
        places = {
            target: run.paths.compared(entry.method, entry.aux, target, entry.seed)
            for target in entry.targets
        }
        work = partial(
            contests.judge,
            entry.make,
            {target: Path(stores[target].path) for target in entry.targets},
            places,
            run.params.metrics,
            bootstrap=first[entry.method, entry.aux] == entry.seed,
        )
        after = [_guides(entry.guides, str(entry.aux))] if entry.guides else []
        yield Job(entry.name, work, (*after, *([entry.beside] if entry.beside else [])))


def _sae(aux: str, seed: int) -> str:
    return f"SAE of {aux}, seed {seed}"


def _guides(method: str, aux: str) -> str:
    return f"guides of {method}, {aux}"


def _auxes(run: RecipeRun, stores: Stores) -> list[str]:
    """In the order of the stores."""
    return [name for name in stores if any(way.aux == name for way in run.params.directions)]


def _aside(run: RecipeRun) -> RecipeRun:
    """For a process beside others: their bars would overwrite each other."""
    return replace(run, console=replace(run.console, bars=False))

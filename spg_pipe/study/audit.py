"""`spg-pipe atlas --audit`: are the atoms the reason? Every claim beside controls, in one table.

Over all directions and seeds of a recipe. The same is asked of the SAE's dictionary and of others
(`audit_dictionaries`), each matched to the same guides by the same pursuit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from spg_pipe.artefacts.files import require_writable
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.guides.contrast import ClassSums, class_sums
from spg_pipe.metrics import write_csv
from spg_pipe.pipeline.checked import checked_detector, checked_sae
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.report.tables import plain
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.audit_dictionaries import DIRECTION, OWN, dictionaries
from spg_pipe.study.audit_faithfulness import (
    DRAWS,
    Reading,
    Variant,
    ablations,
    contrast_directions,
    detector_parts,
    doubling,
    judge,
    matched_parts,
)
from spg_pipe.study.audit_tables import Row, tables
from spg_pipe.study.held_out import FIGURES
from spg_pipe.study.making import guides_job, making_jobs
from spg_pipe.study.methods import PUBLISHED, Stores, auxiliaries, guides_path, stores_of
from spg_pipe.study.runner import Job, run_jobs
from spg_pipe.study.settings import Result, require_default_method


class Subject(NamedTuple):
    """An auxiliary set and a seed: what the claims are about."""

    run: RecipeRun
    aux: str
    seed: int

    @property
    def unseeded(self) -> bool:
        """Whether the dictionaries without a seed are judged with this one."""
        return self.seed == self.run.params.seeds[0]

    def store(self) -> FeatureStore:
        """Of the auxiliary set."""
        return checked_store(self.run, find_dataset(self.run.params, self.aux))

    def saes(self) -> SaeRun:
        """The recipe's."""
        return SaeRun.load(checked_sae(self.run, self.store(), self.aux, self.seed))

    def targets(self) -> dict[str, FeatureStore]:
        """Of the directions from this auxiliary set."""
        names = [way.target for way in self.run.params.directions if way.aux == self.aux]
        return {n: checked_store(self.run, find_dataset(self.run.params, n)) for n in names}

    def row(self, claim: str, target: str, dictionary: str, **figures: Any) -> Row:
        """A row of the table about this."""
        return Row(claim, self.aux, target, self.seed, dictionary, **figures)


def audit(run: RecipeRun) -> Result:
    """Test what the atoms are said to be, on every direction of a recipe with every seed.

    Guides as published are trained if they are missing; the recipe's SAEs, detectors and stores
    must be there. Jobs run in processes of their own, as those of `compare`.

    Returns
    -------
    Result
        See `Row`; also written to audit/<name>.csv.

    Raises
    ------
    SpgError
        If the recipe has no directions, or does not use contrast guides and the additive rule; if
        an artefact is missing.
    """
    require_default_method(run.params, "atlas --audit")
    if not run.params.directions:
        raise SpgError("An audit needs `directions:` in the recipe. The recipe spg-plus has some.")
    require_writable(path := run.params.artifacts / "audit" / f"{run.params.name}.csv")
    run = replace(run, console=replace(run.console, bars=False))  # bars of jobs would overlap
    stores = stores_of(run)
    jobs = _jobs(run, stores)
    names, rows = {job.name for job in jobs if not job.name.startswith("guides of")}, list[Row]()
    for number, (name, result) in enumerate(run_jobs(jobs, choose_device(run.device)), 1):
        rows += result if name in names else []
        run.console.say(f"{number} of {len(jobs)} done: {name}")
    rows.sort(key=lambda row: row[:8])
    about = {
        "backbone": run.params.backbone.alias,
        "method_protocol": run.params.method.protocol,
        "protocol": "exact, maps at a quarter of the size",
    }
    content = [row._asdict() | about for row in rows]
    write_csv(path, content)
    run.console.say(f"Audit {run.params.name} → {path}")
    seeds = ", ".join(map(str, run.params.seeds))
    said = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
    shown = tables(rows, f"{said}; seeds {seeds}.")
    return Result(content, "\n\n".join(map(plain, shown)), path)


def _jobs(run: RecipeRun, stores: Stores) -> list[Job]:
    jobs = [*making_jobs(run, stores, (PUBLISHED,))]
    for aux, seed in product(auxiliaries(run, stores), run.params.seeds):
        checked_detector(run, aux, seed)
        subject, of = Subject(run, aux, seed), f"of {aux}, seed {seed}"
        jobs += [
            Job(f"atoms of contrast guides {of}", partial(contrast_faithfulness, subject)),
            Job(
                f"atoms of trained guides {of}",
                partial(trained_faithfulness, subject),
                (guides_job(PUBLISHED, aux),),
            ),
        ]
    return jobs


def contrast_faithfulness(subject: Subject) -> list[Row]:
    """What the recipe's own guides keep of their figures with some of their atoms."""
    run, aux, seed = subject
    return _faithfulness(subject, Detector.load(run.paths.detector(aux, seed)), "contrast guides")


def trained_faithfulness(subject: Subject) -> list[Row]:
    """The same of guides as published."""
    run, aux, seed = subject
    return _faithfulness(
        subject, Detector.load(guides_path(run, PUBLISHED, aux, seed)), "trained guides"
    )


def _faithfulness(subject: Subject, detector: Detector, claim: str) -> list[Row]:
    store, saes = subject.store(), subject.saes()
    sums = class_sums(store, detector.record.detection)
    made = dictionaries(store, saes, subject.seed, unseeded=subject.unseeded)
    count = subject.run.params.guides.atoms
    variants = [*_variants(detector, sums, made, count, subject.seed)]
    whole = {place: rows.sum(0) for place, rows in detector_parts(detector).items()}
    rows = []
    for target, of in subject.targets().items():
        figures = judge(of, variants, Reading.of(detector), whole, _normal(sums))
        rows += [*_rows(subject, claim, target, variants, figures)]
    return rows


def _variants(
    detector: Detector, sums: ClassSums, made: Mapping[str, SaeRun], count: int, seed: int
) -> Iterator[Variant]:
    """The detector's atoms, kept and removed; and what other dictionaries make of its directions.

    Of trained guides others are matched to the guides' own direction.
    """
    own, gaps = detector_parts(detector), contrast_directions(sums)
    yield from ablations(OWN, own, gaps, DRAWS, seed)
    goals = gaps if detector.contrast else {place: rows.sum(0) for place, rows in own.items()}
    goals = {place: goals[place] for place in own}
    yield Variant(DIRECTION, "made of", count, goals)
    for name, saes in made.items():
        for n in doubling(count):
            parts = matched_parts(goals, saes, n)
            directions = {place: rows.sum(0) for place, rows in parts.items()}
            yield Variant(name, "made of", n, directions)
        if name != OWN:
            yield from ablations(name, parts, gaps)


def _normal(sums: ClassSums) -> dict[str, Tensor]:
    """Layer → (D,) mean unit token of the normal patches."""
    return {
        layer: of.patches[:, 0].double().sum(0).div(of.counts[:, 0].double().sum()).float()
        for layer, of in sums.layers.items()
    }


def _rows(
    subject: Subject, claim: str, target: str, variants: Sequence[Variant], figures: np.ndarray
) -> Iterator[Row]:
    """Of each variant, draws averaged."""
    drawn: dict[tuple[str, str, int], list[int]] = {}
    for number, each in enumerate(variants):
        drawn.setdefault((each.dictionary, each.what, each.n), []).append(number)
    for (name, what, n), numbers in drawn.items():
        values = figures[numbers]
        for figure, of_draws in zip(FIGURES, values.T.tolist(), strict=True):
            low, high = (min(of_draws), max(of_draws)) if len(of_draws) > 1 else (None, None)
            about = {"variant": what, "n": n, "figure": figure}
            value = float(np.mean(of_draws))
            yield subject.row(claim, target, name, **about, value=value, low=low, high=high)

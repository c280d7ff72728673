"""A small recipe with every artefact that the report reads, made by the pipeline itself."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from layouts import write_mvtec

from report.parsed import Page
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import Params, parse_params
from spg_pipe.recipe.paths import Paths
from spg_pipe.report.build import build_report

TRICKY = 'a<b>&"c$d$\x1b[31m'
"""A category that HTML, a URL, a shell, matplotlib and a terminal each read differently."""
SHOWN = TRICKY.replace("\x1b", r"\x1b")


@dataclass(frozen=True)
class World:
    """A recipe and where its artefacts are."""

    params: Params
    paths: Paths
    root: Path

    def changed(self, **update: object) -> World:
        """The same artefacts with other parameters."""
        params = Params.model_validate(self.params.model_dump() | update)
        return World(params, Paths(params, self.paths.image_size), self.root)

    def copied(self, where: Path) -> World:
        """The same recipe with artefacts of its own, to be damaged."""
        shutil.copytree(self.params.artifacts, where / "artifacts")
        return self.changed(artifacts=where / "artifacts")


@pytest.fixture(scope="session")
def published(world: World) -> World:
    """The same data with trained guides and the published rule; one seed."""
    changed = world.changed(
        name="published",
        seeds=(111,),
        guides={"kind": "trained", "epochs": 2},
        score={"rule": "published", "image_score": "cls"},
    )
    return made(changed.params, world.root, extract=False)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two seeds of aux → target; the target has a tricky name and a category of one class."""
    root = tmp_path_factory.mktemp("report")
    write_mvtec(root / "aux", ("tile",), good=2, per_defect=2, seed=1)
    write_mvtec(root / "target", (TRICKY,), good=3, per_defect=2, seed=2)
    write_mvtec(root / "target", ("only-defects",), good=0, per_defect=1, seed=3)
    return made(parse_params(_recipe(root), "the test's recipe"), root, extract=True)


def made(params: Params, root: Path, *, extract: bool) -> World:
    from spg_pipe.pipeline import features, targets, training
    from spg_pipe.pipeline.console import Console

    run = RecipeRun(params, Console(verbosity=0), device="cpu", workers=1)
    for dataset in params.datasets if extract else ():
        features.prepare(run, dataset)
        features.extract(run, dataset, from_manifest=True)
    for seed in params.seeds:
        training.train_sae(run, "aux", seed)
        training.train_guides(run, "aux", seed)
        targets.score(run.narrowed("aux", seed), "target")
        targets.evaluate(run.narrowed("aux", seed), "target")
    return World(params, run.paths, root)


@pytest.fixture(scope="session")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the recipe as it is."""
    out = tmp_path_factory.mktemp("page") / "out"
    built(world, out)
    return out


def built(world: World, out: Path) -> Page:
    """The report of what a recipe has metrics of."""
    keys = [("aux", "target", seed) for seed in world.params.seeds]
    runs = {key: (world.paths.metrics(*key), world.paths.scores(*key)) for key in keys}
    runs = {key: files for key, files in runs.items() if files[0].is_file()}
    return Page(build_report(world.params, world.paths, out, runs))


def _recipe(root: Path) -> dict[str, object]:
    return {
        "name": "mini",
        "artifacts": root / "artifacts",
        "seeds": (111, 112),
        "datasets": [
            {"name": "aux", "layout": "mvtec", "root": root / "aux", "licence": "CC BY-NC 4.0"},
            {"name": "target", "layout": "mvtec", "root": root / "target", "licence": "<own>\x07"},
        ],
        "auxiliaries": ["aux"],
        "directions": [{"aux": "aux", "target": "target"}],
        "backbone": {"alias": "efficientnet-lite0", "image_size": 64},
        "sae": {"dict_size": 32, "k": 4, "tokens": 2400, "batch_tokens": 8},
        "guides": {"atoms": 5},
    }

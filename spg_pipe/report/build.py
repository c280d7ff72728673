"""The HTML report: one folder that opens anywhere, without scripts and without a network."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.datasets.layouts.catalogue import honours_exif
from spg_pipe.decision.heat_maps import colour_bar
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import Params
from spg_pipe.recipe.paths import Paths
from spg_pipe.report import examples, facts, figures, inputs, kinds, tables
from spg_pipe.report.inputs import AuxiliaryRun, DirectionRuns

Progress = Callable[[int, int], None]

GENERATOR = '<meta name="generator" content="spg-pipe report">'
"""What marks a page as ours; the template holds the same line."""


@dataclass(frozen=True)
class Figure:
    """A file of curves and what it shows in words."""

    file: str
    alt: str


@dataclass(frozen=True)
class DirectionSection:
    """What the page shows of one direction beside its tables."""

    runs: DirectionRuns
    curves: Figure | None
    pictures: dict[str, list[examples.Picture]]
    """By category."""

    @property
    def unreadable(self) -> list[str]:
        """Photographs of the pictures that are not there or cannot be decoded."""
        every = (picture for pictures in self.pictures.values() for picture in pictures)
        return [picture.example.path for picture in every if picture.photograph is None]


@dataclass(frozen=True)
class TrainingSection:
    """What the page says about one auxiliary set."""

    title: str
    quality: tables.Table
    curves: Figure | None


def build_report(
    params: Params,
    paths: Paths,
    out: Path,
    runs: inputs.RunFiles,
    *,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write the report of a recipe as a folder: index.html, maps/, curves/.

    Parameters
    ----------
    params : Params
    paths : Paths
        Where the recipe's artefacts are.
    out : Path
        The folder; replaced as a whole.
    runs : dict of (auxiliary, target, seed) → (metrics file, its scores' folder)
        What to show, at least one; the others are named as missing.
    progress : callable (categories done, categories in all), optional

    Returns
    -------
    Path
        `out`/index.html

    Raises
    ------
    SpgError
        If `out` holds something else than a report, or an artefact is damaged.
    """
    from PIL import Image

    _check_replaceable(out)
    directions = inputs.read_directions(params, paths, runs)
    with fresh_folder(out) as folder:
        (folder / "maps").mkdir()
        (folder / "curves").mkdir()
        Image.fromarray(colour_bar()).save(folder / "scale.png")
        page = _page(params, paths, directions, folder, progress)
        (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return out / "index.html"


def _page(
    params: Params,
    paths: Paths,
    directions: list[inputs.DirectionRuns],
    folder: Path,
    progress: Progress,
) -> str:
    """The page's HTML; its pictures and curves are written into `folder`."""
    auxiliaries = inputs.read_auxiliaries(paths, directions)
    total = sum(len(_categories(direction)) for direction in directions)
    done = itertools.count(1)
    first = directions[0].runs[0]
    reported = [direction.direction for direction in directions]
    missing = [way for way in params.directions if way not in reported]
    return _render(
        name=params.name,
        summary=facts.summary(directions),
        remarks=[f"No metrics yet for {way.aux} → {way.target}." for way in missing],
        overview=tables.overview_table([(way.table, way.published) for way in directions]),
        fitting=facts.fitting_table(directions),
        reading=kinds.map_reading(first.rule),
        image_score=kinds.image_score_in_words(first.rule),
        sections=[
            _direction_section(way, folder, lambda: progress(next(done), total))
            for way in directions
        ],
        training=_training_sections(auxiliaries, folder),
        data=_data_sections(params, paths, directions),
        licences=facts.licences(directions),
        recipe=facts.recipe_table(params, directions),
        provenance=facts.provenance_table(directions, auxiliaries),
        versions=facts.versions_table(directions),
    )


def _check_replaceable(out: Path) -> None:
    """Refuse to replace a folder that is no report: it may be someone's work."""
    page = out / "index.html"
    if out.is_dir() and any(out.iterdir()):
        head = page.read_text(encoding="utf-8", errors="replace")[:1000] if page.is_file() else ""
        if GENERATOR not in head:
            raise SpgError(
                f"{out} holds files that are not a report of spg-pipe, and would be replaced as a "
                "whole. Name a folder that is new or empty, or remove it first."
            )


def _categories(runs: DirectionRuns) -> list[str]:
    return list(dict.fromkeys(runs.runs[0].scores.table["category"]))


def _direction_section(
    runs: DirectionRuns, folder: Path, advance: Callable[[], None]
) -> DirectionSection:
    first, pictures = runs.runs[0], dict[str, list[examples.Picture]]()
    curves = figures.pixel_curves(runs.runs, f"Curves {runs.title}")
    alt = f"Pixel ROC, precision-recall and PRO curves of {runs.title}, by category"
    quality = examples.qualities(first.scores, runs.store)
    exif = (
        runs.store.spec.exif
        if runs.store
        else honours_exif(runs.dataset.layout, first.detector.protocol.exif_of_own_images)
    )
    for number, category in enumerate(_categories(runs)):
        chosen = examples.choose(first.scores.table, category, quality)
        stem = f"{runs.name}-{number:02d}"
        pictures[category] = examples.draw(runs, chosen, folder / "maps", stem, exif)
        advance()
    return DirectionSection(runs, _figure(folder, f"{runs.name}-pixel", curves, alt), pictures)


def _training_sections(auxiliaries: Sequence[AuxiliaryRun], folder: Path) -> list[TrainingSection]:
    sections = []
    for aux in dict.fromkeys(run.aux for run in auxiliaries):
        runs = [run for run in auxiliaries if run.aux == aux]
        curves = figures.training_curves(runs, f"Training on {aux}")
        alt = f"Training on {aux}: SAE loss, dead latents and how often latents are active"
        if any(run.guide_curve for run in runs):
            alt += "; losses of the guides"
        figure = _figure(folder, f"{aux}-training", curves, alt)
        quality = facts.sae_table(aux, runs, inputs.seeds_stability(runs))
        sections.append(TrainingSection(aux, quality, figure))
    return sections


def _figure(folder: Path, name: str, content: bytes | None, alt: str) -> Figure | None:
    if content is None:
        return None
    file = f"curves/{name}.svg"
    (folder / file).write_bytes(content)
    return Figure(file, alt)


def _data_sections(
    params: Params, paths: Paths, directions: Sequence[DirectionRuns]
) -> dict[str, Sequence[str]]:
    """Title of a dataset → what its manifest remarks."""
    sections: dict[str, Sequence[str]] = {}
    names = dict.fromkeys(
        name for way in directions for name in (way.direction.aux, way.direction.target)
    )
    for name in names:
        dataset = params.dataset(name)
        manifest = inputs.read_manifest(paths, dataset)
        count = f", {len(manifest):,} images" if manifest else ""
        title = f"{name} ({dataset.layout} layout, {dataset.split} split{count})"
        absent = ("There is no manifest: `spg-pipe prepare` makes it.",)
        sections[title] = manifest.notes if manifest else absent
    return sections


def _render(**content: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("spg_pipe", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {
        "shown": examples.SHOWN,
        "metrics_table": tables.metrics_table,
        "counts_table": tables.counts_table,
    }
    return environment.get_template("report.html.jinja").render(**content)

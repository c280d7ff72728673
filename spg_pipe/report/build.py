"""The HTML report: one folder that opens anywhere, without scripts and without a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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

_TITLES = {
    "best": "Best maps: defects that the map covers best",
    "worst": "Worst maps: defects that the map misses most",
    "highest": "Anomalous images with the highest scores (no masks)",
    "lowest": "Anomalous images with the lowest scores (no masks)",
    "false-alarm": "The normal image with the highest score",
    "unlabelled": "Unlabelled images with the highest scores",
}


@dataclass(frozen=True)
class Figure:
    """A file of curves and what it shows in words."""

    file: str
    alt: str


@dataclass(frozen=True)
class CategoryMaps:
    """The pictures of one category, by kind."""

    category: str
    groups: tuple[tuple[str, tuple[examples.Picture, ...]], ...]


@dataclass(frozen=True)
class DirectionSection:
    """What the page says about one direction."""

    name: str
    """For links: safe in HTML and URLs."""
    title: str
    metrics: tables.Table
    counts: tables.Table
    curves: Figure | None
    curve_note: str
    maps: tuple[CategoryMaps, ...]
    map_seed: int
    remarks: tuple[str, ...]


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
    *,
    runs: inputs.RunFiles | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the report of a recipe as a folder: index.html, maps/, curves/.

    Parameters
    ----------
    params : Params
    paths : Paths
        Where the recipe's artefacts are.
    out : Path
        The folder; replaced as a whole.
    runs : dict of (auxiliary, target, seed) → (metrics file, scores folder), optional
        What to show; the others are named as missing. Default: what lies at the recipe's paths.
    progress : callable (categories done, categories in all), optional

    Returns
    -------
    Path
        `out`/index.html

    Raises
    ------
    SpgError
        If no direction has metrics, metrics and scores do not belong together, or `out` holds
        something else than a report.
    """
    _check_replaceable(out)
    directions = inputs.read_directions(params, paths, runs)
    auxiliaries = inputs.read_auxiliaries(paths, directions)
    total = sum(len(_categories(direction)) for direction in directions)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    first = directions[0].runs[0]
    reported = [direction.direction for direction in directions]
    missing = [way for way in params.directions if way not in reported]
    with fresh_folder(out) as folder:
        (folder / "maps").mkdir()
        (folder / "curves").mkdir()
        _write_png(folder / "scale.png", colour_bar())
        page = _render(
            name=params.name,
            summary=facts.summary(directions),
            remarks=[f"No metrics yet for {way.aux} → {way.target}." for way in missing],
            overview=tables.overview_table([(way.table, way.published) for way in directions]),
            fitting=facts.fitting_table(directions),
            reading=kinds.map_reading(first.rule),
            image_score=kinds.image_score_in_words(first.rule),
            sections=[_direction_section(way, folder, advance) for way in directions],
            training=_training_sections(auxiliaries, folder),
            data=_data_sections(params, paths, directions),
            licences=facts.licences(directions),
            recipe=facts.recipe_table(params, directions),
            provenance=facts.provenance_table(directions, auxiliaries),
            versions=facts.versions_table(directions),
        )
        (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return out / "index.html"


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


def _categories(direction: DirectionRuns) -> list[str]:
    return list(dict.fromkeys(direction.runs[0].scores.table["category"]))


def _direction_section(
    direction: DirectionRuns, folder: Path, advance: Callable[[], None]
) -> DirectionSection:
    way, run, categories = direction.direction, direction.runs[0], _categories(direction)
    name = f"{way.aux}--{way.target}"
    quality = examples.qualities(run.scores, direction.store)
    exif = (
        direction.store.spec.exif
        if direction.store
        else honours_exif(direction.dataset.layout, run.detector.protocol.exif_of_own_images)
    )
    maps, pictures = [], []
    for number, category in enumerate(categories):
        chosen = examples.choose(run.scores.table, category, quality)
        stem = f"{name}-{number:02d}"
        drawn = examples.draw(direction, chosen, folder / "maps", stem, exif)
        shown = dict.fromkeys(picture.example.kind for picture in drawn)
        groups = tuple(
            (_TITLES[kind], tuple(p for p in drawn if p.example.kind == kind)) for kind in shown
        )
        maps.append(CategoryMaps(category, groups))
        pictures += drawn
        advance()
    curves = figures.pixel_curves(direction.runs, f"Curves {direction.title}")
    alt = f"Pixel ROC, precision-recall and PRO curves of {direction.title}, by category"
    return DirectionSection(
        name=name,
        title=direction.title,
        metrics=tables.metrics_table(direction.table, direction.published),
        counts=tables.counts_table(run.metrics.table),
        curves=_figure(folder, f"{name}-pixel", curves, alt),
        curve_note=_curve_note(direction, len(categories)),
        maps=tuple(maps),
        map_seed=run.seed,
        remarks=tuple(_direction_remarks(direction, pictures)),
    )


def _curve_note(direction: DirectionRuns, categories: int) -> str:
    mean = ", mean over seeds" if len(direction.runs) > 1 else ""
    lines = f"Thin: a category{mean}. Bold: the mean of all. " if categories > 1 else ""
    area = "AUPRO@0.3" if direction.table.context.protocol == "exact" else "PRO"
    return (
        f"{lines}Dotted: chance (ROC); the false-positive rate up to which {area} is taken (PRO)."
    )


def _direction_remarks(direction: DirectionRuns, pictures: Sequence[examples.Picture]) -> list[str]:
    remarks = []
    unreadable = [picture.example.path for picture in pictures if picture.photograph is None]
    if direction.missing_seeds:
        listed = ", ".join(map(str, direction.missing_seeds))
        remarks.append(f"No metrics yet for seed {listed}: the table is over the others.")
    if direction.store is None:
        remarks.append(
            "The target's feature store is no longer there, and with it the masks: images are "
            "ranked by their scores, and no outline is drawn."
        )
    if not direction.dataset.root.is_dir():
        remarks.append(
            f"The folder of {direction.dataset.name} is not there any more: the maps are shown "
            "alone, over plain grey."
        )
    elif unreadable:
        listed = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        remarks.append(
            f"{len(unreadable)} of the photographs to show could not be read ({listed}): their "
            "maps are shown alone, over plain grey."
        )
    return remarks


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
    names = dict.fromkeys(n for d in directions for n in (d.direction.aux, d.direction.target))
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
    environment.globals["shown"] = examples.SHOWN
    return environment.get_template("report.html.jinja").render(**content)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, format="PNG")

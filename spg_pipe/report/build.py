"""The HTML report: one folder that opens anywhere, without scripts and without a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.datasets.layouts.catalogue import honours_exif
from spg_pipe.decision import heat_maps
from spg_pipe.decision.maps import SHOWN
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import Params
from spg_pipe.recipe.paths import Paths
from spg_pipe.report import examples, facts, figures, inputs, tables
from spg_pipe.report.inputs import AuxiliaryRun, DirectionRuns

if TYPE_CHECKING:
    from spg_pipe.detector.scores import Scores

Progress = Callable[[int, int], None]

GENERATOR = '<meta name="generator" content="spg-pipe report">'
"""What marks a page as ours; the template holds the same line."""

_TITLES = {
    "best": "Best maps: defects that the map covers best",
    "worst": "Worst maps: defects that the map misses most",
    "highest": "Anomalous images with the highest scores (no masks)",
    "lowest": "Anomalous images with the lowest scores (no masks)",
    "false-alarm": "Strongest false alarm: the normal image with the highest score",
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
    maps: tuple[CategoryMaps, ...]
    map_seed: int
    map_scale: tuple[str, str]
    """What the darkest and the brightest colour of its maps stand for."""
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class TrainingSection:
    """What the page says about one auxiliary set."""

    title: str
    quality: tables.Table
    curves: Figure | None


@dataclass(frozen=True)
class DataSection:
    """What the manifest of one dataset says."""

    title: str
    notes: tuple[str, ...]


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
        What to show; the others are named as missing. Default: what lies in the recipe's places.
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
    _check_place(out)
    directions = inputs.read_directions(params, paths, runs)
    auxiliaries = inputs.read_auxiliaries(paths, directions)
    total = sum(len(_categories(direction)) for direction in directions)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    with fresh_folder(out) as folder:
        (folder / "maps").mkdir()
        (folder / "curves").mkdir()
        (folder / "scale.png").write_bytes(_png(heat_maps.colour_bar()))
        sections = [_direction_section(runs, folder, advance) for runs in directions]
        page = _render(
            name=params.name,
            summary=facts.summary(params, directions),
            remarks=_remarks(params, directions),
            overview=tables.overview_table([(way.table, way.published) for way in directions]),
            fitting=facts.fitting_table(directions),
            sections=sections,
            training=_training_sections(auxiliaries, folder),
            data=_data_sections(params, paths, directions),
            licences=facts.licences(directions),
            recipe=facts.recipe_table(params, directions),
            provenance=facts.provenance_table(directions, auxiliaries),
            versions=facts.versions_table(directions),
        )
        (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return out / "index.html"


def _check_place(out: Path) -> None:
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
    way = runs.direction
    name = f"{way.aux}--{way.target}"
    title = f"{way.aux} → {way.target}"
    scores = runs.runs[0].scores
    quality = examples.qualities(scores, runs.store)
    origin = scores.record.detector
    exif = (
        runs.store.spec.exif
        if runs.store
        else honours_exif(runs.dataset.layout, origin is None or origin.protocol.exif_of_own_images)
    )
    maps, unreadable = [], []
    for number, category in enumerate(_categories(runs)):
        chosen = examples.choose(scores.table, category, quality)
        stem = f"{name}-{number:02d}"
        pictures, failed = examples.draw(runs, chosen, folder / "maps", stem, exif)
        unreadable += failed
        kinds = dict.fromkeys(picture.example.kind for picture in pictures)
        groups = tuple(
            (_TITLES[kind], tuple(p for p in pictures if p.example.kind == kind)) for kind in kinds
        )
        maps.append(CategoryMaps(category, groups))
        advance()
    curves = figures.pixel_curves(runs.runs, f"Curves {title}")
    alt = f"Pixel ROC, precision-recall and PRO curves of {title}: a line a category and the mean"
    return DirectionSection(
        name=name,
        title=title,
        metrics=tables.metrics_table(runs.table, runs.published),
        counts=tables.counts_table(runs.runs[0].table),
        curves=_figure(folder, f"{name}-pixel", curves, alt),
        maps=tuple(maps),
        map_seed=runs.runs[0].seed,
        map_scale=_map_scale(runs.runs[0].scores),
        remarks=tuple(_direction_remarks(runs, unreadable)),
    )


def _map_scale(scores: "Scores") -> tuple[str, str]:
    if not scores.log_odds:
        return "0", "1"
    low, high = SHOWN
    return f"log odds {low:g}", f"{high:g}"


def _direction_remarks(runs: DirectionRuns, unreadable: Sequence[str]) -> list[str]:
    remarks = []
    if runs.missing_seeds:
        listed = ", ".join(map(str, runs.missing_seeds))
        remarks.append(f"No metrics yet for seed {listed}: the table is over the others.")
    if runs.store is None:
        remarks.append(
            "The target's feature store is no longer there, and with it the masks: images are "
            "ranked by their scores, and no outline is drawn."
        )
    if not runs.dataset.root.is_dir():
        remarks.append(
            f"The folder of {runs.dataset.name} is not there any more: the maps are shown alone, "
            "over plain grey."
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
        alt = (
            f"Training on {aux}: SAE loss, dead latents and how often latents are active, guide "
            "losses; a line a seed"
        )
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
) -> list[DataSection]:
    sections = []
    names = dict.fromkeys(n for d in directions for n in (d.direction.aux, d.direction.target))
    for name in names:
        dataset = params.dataset(name)
        manifest = inputs.read_manifest(paths, dataset)
        notes = (
            manifest.notes if manifest else ("There is no manifest: `spg-pipe prepare` makes it.",)
        )
        count = f", {len(manifest):,} images" if manifest else ""
        title = f"{name} ({dataset.layout} layout, {dataset.split} split{count})"
        sections.append(DataSection(title, tuple(notes)))
    return sections


def _remarks(params: Params, directions: Sequence[DirectionRuns]) -> list[str]:
    missing = inputs.missing_directions(params, directions)
    return [f"No metrics yet for {way.aux} → {way.target}." for way in missing]


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


def _png(pixels: Any) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()

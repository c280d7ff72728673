"""The HTML report: one folder that opens anywhere, from its file and without a network.

Each direction has a gallery of all its images in a folder of its own.

It links the atlas, where there is one, and has copies of what it shows of it.

Words and tables that only the page has are in its template; what it draws is in `examples` and
`figures`.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.decision.maps import SHOWN, SIGMA
from spg_pipe.explain.picture import FULL
from spg_pipe.guides.model import TAU
from spg_pipe.recipe.params import Dataset, Params
from spg_pipe.recipe.paths import Paths
from spg_pipe.report import atoms, direction, examples, inputs, kinds, tables
from spg_pipe.report.atlas import Looks, copied
from spg_pipe.report.curves import Curves, pixel_curves, training_curves
from spg_pipe.report.examples import ExampleWithReasons
from spg_pipe.report.figures import write_curves
from spg_pipe.report.gallery import IMAGES, Gallery, write_gallery
from spg_pipe.report.inputs import AuxiliaryRun, DirectionRuns
from spg_pipe.report.page import environment, require_replaceable, write_assets

Progress = Callable[[int, int], None]


class DirectionGallery(NamedTuple):
    """What is shown of the images of a direction."""

    files: direction.FilesOfImages
    examples: Mapping[str, Sequence[ExampleWithReasons]]
    """Category → its examples on the report's page."""
    looks: Looks | None
    """What the atlas of the detector shows of the atoms that are named."""

    @property
    def explained(self) -> bool:
        """Whether it is known of any example why it has its score."""
        return any(each.reasons for some in self.examples.values() for each in some)


def build_report(
    params: Params,
    paths: Paths,
    out: Path,
    runs: inputs.RunFiles,
    *,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write the report of a recipe as a folder: index.html, a folder a direction, curves/, atoms/.

    Parameters
    ----------
    params : Params
    paths : Paths
        Where the recipe's artefacts are.
    out : Path
        The folder; replaced as a whole.
    runs : dict of (auxiliary, target, seed) → (metrics file, its scores' folder)
        What to show, at least one; the others are named as missing.
    progress : callable (images drawn, images in all), optional

    Returns
    -------
    Path
        `out`/index.html

    Raises
    ------
    SpgError
        If `out` holds something else than a report, or an artefact is damaged.
    """
    require_replaceable(out, "report")
    directions = inputs.read_directions(params, paths, runs)
    auxiliaries = inputs.read_auxiliaries(paths, directions)
    chosen = {way.name: _chosen(way) for way in directions}
    rows = {way.name: _rows(way, chosen[way.name]) for way in directions}
    made, galleries = _environment(directions), {}
    done, total = itertools.count(1), sum(map(len, rows.values()))
    with fresh_folder(out) as folder:
        write_assets(folder)
        curves = _curves(directions, list(auxiliaries.values()))
        write_curves(folder / "curves", curves)
        for way in directions:
            files = direction.write_images(
                way, rows[way.name], folder / way.name / IMAGES, lambda: progress(next(done), total)
            )
            galleries[way.name] = _with_examples(paths, way, chosen[way.name], files, folder, out)
            _write_gallery(way, galleries[way.name], made, params, folder)
        page = made.get_template("report.html.jinja").render(
            params=params,
            directions=directions,
            auxiliaries=auxiliaries,
            runs=[(way, run) for way in directions for run in way.runs],
            curves=curves,
            galleries=galleries,
            overview=tables.overview_table([(way.table, way.published) for way in directions]),
            data=_data(params, paths, directions),
        )
        (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return out / "index.html"


def _curves(
    directions: Sequence[DirectionRuns], auxiliaries: Sequence[AuxiliaryRun]
) -> dict[str, Curves]:
    """Name → curves."""
    curves = {
        f"{way.name}-pixel": pixel_curves(way.runs, f"Curves {way.title}") for way in directions
    }
    for aux in dict.fromkeys(run.aux for run in auxiliaries):
        runs = [run for run in auxiliaries if run.aux == aux]
        curves[f"{aux}-training"] = training_curves(runs, f"Training on {aux}")
    return {name: kept for name, kept in curves.items() if kept is not None}


def _chosen(way: DirectionRuns) -> dict[str, list[examples.Example]]:
    """Category → its examples."""
    scores = way.runs[0].scores
    quality = examples.qualities(scores, way.store)
    names = dict.fromkeys(scores.table["category"])
    return {name: examples.choose(scores.table, name, quality) for name in names}


def _rows(way: DirectionRuns, chosen: Mapping[str, Sequence[examples.Example]]) -> list[int]:
    """Rows of the scores' table in the gallery."""
    wanted = {each.image for some in chosen.values() for each in some}
    return direction.rows_shown(way.runs[0].scores.table, wanted)


def _with_examples(
    paths: Paths,
    way: DirectionRuns,
    chosen: Mapping[str, Sequence[examples.Example]],
    files: direction.FilesOfImages,
    folder: Path,
    out: Path,
) -> DirectionGallery:
    """A gallery whose images have their files; those of its examples' atoms are written."""
    source, shown, run = atoms.source_of(paths, way), {}, way.runs[0]
    names: set[str] = set()
    (folder / "maps").mkdir(exist_ok=True)
    for category, some in chosen.items():
        why = atoms.why(source, category, [each.image for each in some])
        shown[category] = [
            ExampleWithReasons(each, of_image, because, f"maps/{way.name}-{of_image.stem}-atom")
            for each, because in zip(some, why, strict=True)
            for of_image in [files[each.image]]
        ]
        names |= {atom.name for because in why if because for atom in because.atoms}
        examples.draw_atoms(way, shown[category], folder / way.name / IMAGES, folder)
    atlas = paths.atlas(way.direction.aux, run.seed)
    return DirectionGallery(files, shown, copied(atlas, run.detector, names, folder, out))


def _write_gallery(
    way: DirectionRuns, shown: DirectionGallery, made: Environment, params: Params, folder: Path
) -> None:
    """The pages of a direction's gallery."""
    run = way.runs[0]
    macro: Any = made.get_template("why.html.jinja").module
    explained = {each.example.image: each for some in shown.examples.values() for each in some}

    def why(image: int) -> Markup:
        example = explained.get(image)
        return macro.why(example, shown.looks, "../../") if example else Markup()

    low, high = (f"{end:g}" for end in (SHOWN if run.scores.record.log_odds else (0, 1)))
    notes = [f"Report {params.name}. {tables.caption(run.metrics.table)}"]
    if len(shown.files) < len(run.scores.table):
        notes.append(
            f"Shown are {len(shown.files):,} of {len(run.scores.table):,} images, evenly spaced by "
            "their scores in each category; counts and rates are of these."
        )
    gallery = Gallery(
        title=way.title,
        thresholds=direction.thresholds(run.metrics.table, run.scores.table),
        low=f"log odds {low}" if run.scores.record.log_odds else low,
        high=high,
        notes=notes,
        back=("../index.html", f"Report: {params.name}"),
    )
    write_gallery(folder / way.name, gallery, direction.gallery_images(way, shown.files, why))


def _data(
    params: Params, paths: Paths, directions: Sequence[DirectionRuns]
) -> dict[str, tuple[Dataset, Manifest | None]]:
    """Every dataset, with the manifest that `prepare` saved, if it did."""
    ways = [way.direction for way in directions]
    data = {}
    for name in dict.fromkeys(name for way in ways for name in (way.aux, way.target)):
        dataset, path = params.dataset(name), paths.manifest(name)
        data[name] = dataset, Manifest.load(path, dataset.root) if path.is_file() else None
    return data


def forbids_commerce(licence: str) -> bool:
    """Whether a licence says so in its usual words."""
    return bool(re.search(r"non-?commercial|-nc", licence, re.IGNORECASE))


def versions(made: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Library → version, several where artefacts were made with several."""
    names = dict.fromkeys(name for each in made for name in each)
    return {
        name: " / ".join(dict.fromkeys(each[name] for each in made if name in each))
        for name in names
    }


def _environment(directions: Sequence[DirectionRuns]) -> Environment:
    """Templates with what all pages of a report know."""
    made = environment()
    made.globals |= {
        "additive": directions[0].runs[0].rule.rule == "additive",
        "atom_full": FULL,
        "examples_shown": examples.SHOWN,
        "fingerprint_digits": 16,
        "log_odds_shown": SHOWN,
        "sigma": SIGMA,
        "tau": TAU,
        "forbids_commerce": forbids_commerce,
        "guides_in_words": kinds.guides_in_words,
        "image_score_in_words": kinds.image_score_in_words,
        "metrics_table": tables.metrics_table,
        "operating_table": tables.operating_table,
        "stability": inputs.stability,
        "unread": direction.unread,
        "versions": versions,
    }
    return made

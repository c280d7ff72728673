"""The HTML report: one folder that opens anywhere, from its file and without a network.

Each direction has a gallery of all its images in a folder of its own.

It links the atlas, where there is one, and has copies of what it shows of it.

Words and tables that only the page has are in its template; what it draws is in `examples` and
`figures`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from spg_pipe.report.direction import Drawn
from spg_pipe.report.figures import write_curves
from spg_pipe.report.gallery import IMAGES, Gallery, write_gallery
from spg_pipe.report.inputs import AuxiliaryRun, DirectionRuns
from spg_pipe.report.page import environment, require_replaceable, write_assets

Chosen = Mapping[str, Sequence[examples.Example]]
"""Category → the examples of it on the page."""
Progress = Callable[[int, int], None]


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
    with fresh_folder(out) as folder:
        for name in ("maps", "curves"):
            (folder / name).mkdir()
        write_assets(folder)
        curves = _curves(directions, list(auxiliaries.values()), folder / "curves")
        drawn = _draw(directions, chosen, folder, progress)
        pictures = _pictures(paths, directions, chosen, drawn, folder)
        looks = _looks(paths, directions, pictures, folder, out)
        made = _environment(directions, looks)
        for way in directions:
            _write_gallery(way, drawn[way.name], pictures[way.name], made, looks, params, folder)
        page = made.get_template("report.html.jinja").render(
            params=params,
            directions=directions,
            auxiliaries=auxiliaries,
            runs=[(way, run) for way in directions for run in way.runs],
            curves=curves,
            drawn=drawn,
            pictures=pictures,
            explained=any(map(_reasons, pictures.values())),
            overview=tables.overview_table([(way.table, way.published) for way in directions]),
            data=_data(params, paths, directions),
        )
        (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return out / "index.html"


def _curves(
    directions: Sequence[DirectionRuns], auxiliaries: Sequence[AuxiliaryRun], folder: Path
) -> dict[str, Curves]:
    """Name → curves, whose files are written: the drawing, its data, what makes it live."""
    found = {
        f"{way.name}-pixel": pixel_curves(way.runs, f"Curves {way.title}") for way in directions
    }
    for aux in dict.fromkeys(run.aux for run in auxiliaries):
        runs = [run for run in auxiliaries if run.aux == aux]
        found[f"{aux}-training"] = training_curves(runs, f"Training on {aux}")
    curves = {name: made for name, made in found.items() if made is not None}
    write_curves(folder, curves)
    return curves


def _chosen(way: DirectionRuns) -> Chosen:
    """Category → its examples."""
    scores = way.runs[0].scores
    quality = examples.qualities(scores, way.store)
    names = dict.fromkeys(scores.table["category"])
    return {name: examples.choose(scores.table, name, quality) for name in names}


def _draw(
    directions: Sequence[DirectionRuns],
    chosen: Mapping[str, Chosen],
    folder: Path,
    progress: Progress,
) -> dict[str, Drawn]:
    """Direction → the pictures of its gallery."""
    rows = {}
    for way in directions:
        wanted = {each.image for some in chosen[way.name].values() for each in some}
        rows[way.name] = direction.rows_shown(way.runs[0].scores.table, wanted)
    total = sum(map(len, rows.values()))
    drawn: dict[str, Drawn] = {}
    for way in directions:
        before = sum(map(len, drawn.values()))

        def tell(done: int, before: int = before) -> None:
            progress(before + done, total)

        drawn[way.name] = direction.draw_images(
            way, rows[way.name], folder / way.name / IMAGES, tell
        )
    return drawn


def _pictures(
    paths: Paths,
    directions: Sequence[DirectionRuns],
    chosen: Mapping[str, Chosen],
    drawn: Mapping[str, Drawn],
    folder: Path,
) -> dict[str, dict[str, list[examples.Picture]]]:
    """Direction → category → its examples with their reasons, whose pictures are written."""
    pictures: dict[str, dict[str, list[examples.Picture]]] = {}
    for way in directions:
        source, of_way = atoms.source_of(paths, way), pictures.setdefault(way.name, {})
        for category, some in chosen[way.name].items():
            why = atoms.why(source, category, [example.image for example in some])
            of_way[category] = [
                examples.Picture(each, files, because, f"maps/{way.name}-{files.stem}-atom")
                for each, because in zip(some, why, strict=True)
                for files in [drawn[way.name][each.image]]
            ]
            examples.draw_atoms(way, of_way[category], folder / way.name / IMAGES, folder)
    return pictures


def _write_gallery(
    way: DirectionRuns,
    drawn: Drawn,
    pictures: Mapping[str, Sequence[examples.Picture]],
    made: Environment,
    looks: Mapping[str, Looks],
    params: Params,
    folder: Path,
) -> None:
    """The pages of a direction's gallery."""
    run = way.runs[0]
    macro: Any = made.get_template("why.html.jinja").module
    shown = {each.example.image: each for some in pictures.values() for each in some}

    def why(image: int) -> Markup:
        return (
            macro.why(shown[image], looks.get(way.name), "../../") if image in shown else Markup()
        )

    low, high = (f"{end:g}" for end in (SHOWN if run.scores.record.log_odds else (0, 1)))
    notes = [f"Report {params.name}; seed {run.seed}; target {way.direction.target}."]
    if len(drawn) < len(run.scores.table):
        notes.append(
            f"Shown are {len(drawn):,} of {len(run.scores.table):,} images, evenly spaced by their "
            "scores in each category; counts and rates here are of these."
        )
    gallery = Gallery(
        title=way.title,
        thresholds=direction.thresholds(run.metrics.table, run.scores.table),
        low=f"log odds {low}" if run.scores.record.log_odds else low,
        high=high,
        notes=notes,
        back=("../index.html", f"Report: {params.name}"),
    )
    write_gallery(folder / way.name, gallery, direction.gallery_images(way, drawn, why))


def _reasons(pictures: Mapping[str, Sequence[examples.Picture]]) -> list[atoms.Reasons]:
    """What the page says of a direction's pictures."""
    return [why for drawn in pictures.values() for each in drawn if (why := each.reasons)]


def _looks(
    paths: Paths,
    directions: Sequence[DirectionRuns],
    pictures: Mapping[str, Mapping[str, Sequence[examples.Picture]]],
    folder: Path,
    out: Path,
) -> dict[str, Looks]:
    """Direction → what the atlas of its detector shows of the atoms that the page names."""
    found = {}
    for way in directions:
        run = way.runs[0]
        names = {atom.name for why in _reasons(pictures[way.name]) for atom in why.atoms}
        looks = copied(paths.atlas(way.direction.aux, run.seed), run.detector, names, folder, out)
        if looks is not None:
            found[way.name] = looks
    return found


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


def _environment(directions: Sequence[DirectionRuns], looks: Mapping[str, Looks]) -> Environment:
    """Templates with what all pages of a report know."""
    made = environment()
    made.globals |= {
        "additive": directions[0].runs[0].rule.rule == "additive",
        "atom_full": FULL,
        "examples_shown": examples.SHOWN,
        "fingerprint_digits": 16,
        "log_odds_shown": SHOWN,
        "looks": looks,
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

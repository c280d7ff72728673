"""The HTML report: one folder that opens anywhere, without scripts and without a network.

It links the atlas, where there is one, and has copies of what it shows of it.

Words and tables that only the page has are in its template; what it draws is in `examples` and
`figures`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.decision.heat_maps import colour_bar
from spg_pipe.decision.maps import SHOWN, SIGMA
from spg_pipe.explain.picture import FULL
from spg_pipe.guides.model import TAU
from spg_pipe.recipe.params import Dataset, Params
from spg_pipe.recipe.paths import Paths
from spg_pipe.report import atoms, examples, inputs, kinds, tables
from spg_pipe.report.atlas import Looks, copied
from spg_pipe.report.curves import Curves, pixel_curves, script, training_curves
from spg_pipe.report.figures import drawing
from spg_pipe.report.inputs import AuxiliaryRun, DirectionRuns
from spg_pipe.report.page import environment, require_replaceable

Progress = Callable[[int, int], None]


def build_report(
    params: Params,
    paths: Paths,
    out: Path,
    runs: inputs.RunFiles,
    *,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write the report of a recipe as a folder: index.html, maps/, curves/, atoms/.

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

    require_replaceable(out, "report")
    directions = inputs.read_directions(params, paths, runs)
    auxiliaries = inputs.read_auxiliaries(paths, directions)
    with fresh_folder(out) as folder:
        (folder / "maps").mkdir()
        (folder / "curves").mkdir()
        Image.fromarray(colour_bar()).save(folder / "scale.png")
        curves = _curves(directions, list(auxiliaries.values()), folder / "curves")
        pictures = _pictures(paths, directions, folder / "maps", progress)
        page = _render(
            params=params,
            directions=directions,
            auxiliaries=auxiliaries,
            runs=[(way, run) for way in directions for run in way.runs],
            curves=curves,
            pictures=pictures,
            explained=any(map(_reasons, pictures.values())),
            looks=_looks(paths, directions, pictures, folder, out),
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
    for name, made in curves.items():
        (folder / f"{name}.svg").write_bytes(drawing(made))
        (folder / f"{name}.js").write_text(made.script(name), encoding="utf-8", newline="\n")
    (folder / "curves.js").write_text(script(), encoding="utf-8", newline="\n")
    return curves


def _pictures(
    paths: Paths, directions: Sequence[DirectionRuns], folder: Path, progress: Progress
) -> dict[str, dict[str, list[examples.Picture]]]:
    """Direction → category → its pictures."""
    categories = {
        way.name: list(dict.fromkeys(way.runs[0].scores.table["category"])) for way in directions
    }
    done, total = 0, sum(map(len, categories.values()))
    pictures: dict[str, dict[str, list[examples.Picture]]] = {}
    for way in directions:
        scores, drawn = way.runs[0].scores, pictures.setdefault(way.name, {})
        quality, source = examples.qualities(scores, way.store), atoms.source_of(paths, way)
        for number, category in enumerate(categories[way.name]):
            chosen = examples.choose(scores.table, category, quality)
            why = atoms.why(source, category, [example.image for example in chosen])
            drawn[category] = examples.draw(way, chosen, why, folder, f"{way.name}-{number:02d}")
            done += 1
            progress(done, total)
    return pictures


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


def _render(**content: Any) -> str:
    made = environment()
    made.globals |= {
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
        "versions": versions,
    }
    return made.get_template("report.html.jinja").render(**content)

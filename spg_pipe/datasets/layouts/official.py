"""The two benchmarks that this method is published on: their categories, counts and licences.

Counts are those of the official releases (MVTec AD: 3629 training and 1725 test images; VisA:
8659 and 2162 in its one-class split). A subset on disk is fine; every difference becomes a note.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spg_pipe.datasets.layouts.listing import Entry, Scan
from spg_pipe.datasets.manifest import LABEL_NORMAL
from spg_pipe.datasets.walk import relative
from spg_pipe.errors import listed
from spg_pipe.recipe.data import Dataset

COUNTED = ("training", "normal test", "anomalous test")
"""What a category's three numbers of images are of."""
_LICENCE_FILES = ("license", "licence", "copying")


@dataclass(frozen=True)
class Benchmark:
    """A published dataset."""

    name: str
    licence: str
    source: str
    """Where the official copy is, in words."""
    categories: dict[str, tuple[int, int, int]]
    """Numbers of images: `COUNTED`."""


def _counts(table: str) -> dict[str, tuple[int, int, int]]:
    """`bottle 209 20 63, …` → name → numbers of images (`COUNTED`)."""
    rows = [row.split() for row in table.split(", ")]
    return {name: (int(train), int(good), int(bad)) for name, train, good, bad in rows}


MVTEC_AD = Benchmark(
    name="MVTec AD",
    licence="CC BY-NC-SA 4.0 (non-commercial)",
    source="its official page, https://www.mvtec.com/company/research/datasets/mvtec-ad",
    categories=_counts(
        "bottle 209 20 63, cable 224 58 92, capsule 219 23 109, carpet 280 28 89, grid 264 21 57, "
        "hazelnut 391 40 70, leather 245 32 92, metal_nut 220 22 93, pill 267 26 141, "
        "screw 320 41 119, tile 230 33 84, toothbrush 60 12 30, transistor 213 60 40, "
        "wood 247 19 60, zipper 240 32 119"
    ),
)

VISA = Benchmark(
    name="VisA",
    licence="CC BY 4.0",
    source="its official page, https://github.com/amazon-science/spot-diff (VisA_20220922.tar)",
    categories=_counts(
        "candle 900 100 100, capsules 542 60 100, cashew 450 50 100, chewinggum 453 50 100, "
        "fryum 450 50 100, macaroni1 900 100 100, macaroni2 900 100 100, pcb1 904 100 100, "
        "pcb2 901 100 100, pcb3 905 101 100, pcb4 904 101 100, pipe_fryum 450 50 100"
    ),
)

BENCHMARKS = {"mvtec": MVTEC_AD, "visa": VISA}
"""The benchmark of each official layout."""


def recognised(
    dataset: Dataset, name: str, root: Path, scan: Scan, wanted: Sequence[str]
) -> tuple[str, list[str]]:
    """The licence of a set of images, and how it differs from the benchmark that it is.

    Category names as common as `tile` prove nothing in a layout that many datasets share: MVTec AD
    must also be in the name of the dataset or of its folder or in a licence or readme file, or have
    three such categories. The visa layout is VisA's own.

    Parameters
    ----------
    dataset
        Its layout and its split count.
    name, root
        Of the dataset, or of one set of a union.
    scan
        Every category on disk, and the images of the `wanted` ones.
    """
    benchmark = BENCHMARKS.get(dataset.layout)
    official = [c for c in scan.categories if benchmark and c in benchmark.categories]
    named = "mvtec" in f"{name} {root.resolve().name}".lower() or dataset.layout == "visa"
    if benchmark and official and (named or len(official) >= 3 or _says_mvtec(root, official)):
        notes = _compared(benchmark, official, wanted, scan.entries, dataset.split)
        return f"{benchmark.name}: {benchmark.licence}", notes
    notes = []
    # The recipes of the published experiment call theirs so; another name claims nothing.
    if benchmark and not official and name == dataset.layout:
        notes.append(
            f"called {name}, but none of the {len(benchmark.categories)} {benchmark.name} "
            f"categories found: these images are not {benchmark.name}, and its published figures "
            f"do not apply"
        )
    licences = _documents(root, wanted, _LICENCE_FILES)
    stated = f"as stated in {relative(licences[0], root)} of the dataset" if licences else ""
    return f"{name}: {scan.licence or stated or 'not stated'}", notes


def _documents(root: Path, categories: Sequence[str], names: tuple[str, ...]) -> list[Path]:
    """Text files of the dataset, then of its categories, whose names start with one of `names`."""
    folders = (root, *(root / category for category in categories))
    files = [path for folder in folders for path in sorted(folder.glob("*"))]
    named = [path for path in files if path.name.lower().startswith(names)]
    return [p for p in named if p.suffix.lower() in ("", ".txt", ".md") and p.is_file()]


def _says_mvtec(root: Path, categories: Sequence[str]) -> bool:
    """Whether a licence or readme file names MVTec."""
    files = _documents(root, categories, (*_LICENCE_FILES, "readme"))
    return any(b"mvtec" in path.read_bytes().lower() for path in files)


def _compared(
    benchmark: Benchmark,
    present: Sequence[str],
    wanted: Sequence[str],
    entries: Sequence[Entry],
    split: str,
) -> list[str]:
    """Notes on missing and unknown categories and on counts that are not the official ones."""
    name, known = benchmark.name, benchmark.categories
    notes = []
    if absent := [c for c in known if c not in present]:
        notes.append(
            f"{len(present)} of {len(known)} categories of {name} are on disk; missing: "
            f"{listed(absent, len(absent))}"
        )
    if unknown := [c for c in wanted if c not in known]:
        notes.append(f"not among the categories of {name}: {listed(unknown)}")
    counted = {"train": COUNTED[:1], "test": COUNTED[1:]}.get(split, COUNTED)
    for category in [category for category in wanted if category in known]:
        images = [entry for entry in entries if entry.category == category]
        tests = [entry.label == LABEL_NORMAL for entry in images if not entry.train]
        numbers = (len(images) - len(tests), sum(tests), len(tests) - sum(tests))
        notes += [
            f"{category}: {there} {what} images, official {official}"
            for what, there, official in zip(COUNTED, numbers, known[category], strict=True)
            if what in counted and there != official
        ]
    return notes

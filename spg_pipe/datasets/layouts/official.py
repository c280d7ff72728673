"""The two benchmarks that this method is published on: their categories, counts and licences.

Counts are those of the official releases (MVTec AD: 3629 training and 1725 test images; VisA:
8659 and 2162 in its one-class split). A subset on disk is fine; every difference becomes a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spg_pipe.datasets.layouts.listing import Entry
from spg_pipe.datasets.manifest import LABEL_NORMAL
from spg_pipe.errors import listed

Split = str


class Counts(NamedTuple):
    """Images of one category."""

    train: int
    """Normal images to train on."""
    normal: int
    """Normal images of the test split."""
    anomalous: int
    """Anomalous images of the test split."""


@dataclass(frozen=True)
class Benchmark:
    """A published dataset."""

    name: str
    licence: str
    source: str
    """Where the official copy is, in words."""
    categories: dict[str, Counts]


MVTEC_AD = Benchmark(
    name="MVTec AD",
    licence="CC BY-NC-SA 4.0 (non-commercial)",
    source="its official page, https://www.mvtec.com/company/research/datasets/mvtec-ad",
    categories={
        "bottle": Counts(209, 20, 63),
        "cable": Counts(224, 58, 92),
        "capsule": Counts(219, 23, 109),
        "carpet": Counts(280, 28, 89),
        "grid": Counts(264, 21, 57),
        "hazelnut": Counts(391, 40, 70),
        "leather": Counts(245, 32, 92),
        "metal_nut": Counts(220, 22, 93),
        "pill": Counts(267, 26, 141),
        "screw": Counts(320, 41, 119),
        "tile": Counts(230, 33, 84),
        "toothbrush": Counts(60, 12, 30),
        "transistor": Counts(213, 60, 40),
        "wood": Counts(247, 19, 60),
        "zipper": Counts(240, 32, 119),
    },
)

VISA = Benchmark(
    name="VisA",
    licence="CC BY 4.0",
    source="its official page, https://github.com/amazon-science/spot-diff (VisA_20220922.tar)",
    categories={
        "candle": Counts(900, 100, 100),
        "capsules": Counts(542, 60, 100),
        "cashew": Counts(450, 50, 100),
        "chewinggum": Counts(453, 50, 100),
        "fryum": Counts(450, 50, 100),
        "macaroni1": Counts(900, 100, 100),
        "macaroni2": Counts(900, 100, 100),
        "pcb1": Counts(904, 100, 100),
        "pcb2": Counts(901, 100, 100),
        "pcb3": Counts(905, 101, 100),
        "pcb4": Counts(904, 101, 100),
        "pipe_fryum": Counts(450, 50, 100),
    },
)

BENCHMARKS = {"mvtec": MVTEC_AD, "visa": VISA}
"""The benchmark of each official layout."""


def identify(layout: str, name: str, root: Path, categories: Sequence[str]) -> Benchmark | None:
    """The benchmark that a folder holds, if it is one.

    Category names as common as `tile` prove nothing in a layout that many datasets share: for
    MVTec AD there must also be its name (of the dataset, of its folder or in a licence or readme
    file), or three such categories. The visa layout is VisA's own.
    """
    benchmark = BENCHMARKS.get(layout)
    if benchmark is None:
        return None
    official = [c for c in categories if c in benchmark.categories]
    if not official:
        return None
    named = "mvtec" in f"{name} {root.resolve().name}".lower()
    if layout == "visa" or named or len(official) >= 3:
        return benchmark
    folders = [root, *(root / c for c in official)]
    texts = [p for folder in folders for p in document_files(folder)]
    return benchmark if any("mvtec" in _start_of(p).lower() for p in texts) else None


def not_the_benchmark(layout: str, name: str, categories: Sequence[str]) -> list[str]:
    """A note if a dataset is called exactly what its layout's benchmark is, and is another.

    The recipes of the published experiment call theirs `mvtec` and `visa`. Under any other name
    (`demo-visa`, `mtd`) a set of the same layout claims nothing, so there is nothing to note.
    """
    benchmark = BENCHMARKS.get(layout)
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if (
        benchmark is None
        or plain not in (layout, f"{layout}ad")
        or any(c in benchmark.categories for c in categories)
    ):
        return []
    return [
        f"called {name}, but none of the {len(benchmark.categories)} {benchmark.name} categories "
        f"found: these images are not {benchmark.name}, and its published figures do not apply"
    ]


def document_files(folder: Path) -> list[Path]:
    """Licence and readme files directly in `folder`, sorted."""
    names = ("license", "licence", "copying", "readme")
    files = (p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in ("", ".txt", ".md"))
    return sorted(p for p in files if p.name.lower().startswith(names))


def licence_of(name: str, root: Path, categories: Sequence[str]) -> str:
    """What is known of the licence of a dataset that is no benchmark."""
    folders = [root, *(root / c for c in categories)]
    files = [p for f in folders if f.is_dir() for p in document_files(f)]
    stated = [p for p in files if not p.name.lower().startswith("readme")]
    if stated:
        return f"{name}: as stated in {stated[0].relative_to(root).as_posix()} of the dataset"
    return f"{name}: not stated"


def check(
    benchmark: Benchmark,
    on_disk: Sequence[str],
    wanted: Sequence[str],
    entries: Sequence[Entry],
    split: Split,
) -> list[str]:
    """Notes on missing and unknown categories and on counts that are not the official ones.

    Parameters
    ----------
    on_disk, wanted
        All categories there, and those that were chosen.
    entries
        Images of the chosen categories.
    split
        `test`, `train` or `all`: which counts to compare.
    """
    name, known = benchmark.name, benchmark.categories
    notes = []
    present = [c for c in known if c in on_disk]
    if absent := [c for c in known if c not in on_disk]:
        notes.append(
            f"{len(present)} of {len(known)} categories of {name} are on disk; missing: "
            f"{listed(absent, len(absent))}"
        )
    if unknown := [c for c in wanted if c not in known]:
        notes.append(f"not among the categories of {name}: {listed(unknown)}")
    compared = [c for c in wanted if c in known]
    different = [
        note for c in compared for note in _differences(c, known[c], _counts(entries, c), split)
    ]
    if different:
        notes += different
    elif compared:
        notes.append(f"{name}: image counts as in the official release (split: {split})")
    return notes


def _counts(entries: Sequence[Entry], category: str) -> Counts:
    tally: Counter[tuple[bool, bool]] = Counter(
        (e.train, e.label == LABEL_NORMAL) for e in entries if e.category == category
    )
    train = tally[True, True] + tally[True, False]
    return Counts(train, tally[False, True], tally[False, False])


def _differences(category: str, official: Counts, found: Counts, split: Split) -> list[str]:
    names = {"train": "training", "normal": "normal test", "anomalous": "anomalous test"}
    fields = {"train": ["train"], "test": ["normal", "anomalous"]}.get(split, list(names))
    return [
        f"{category}: {getattr(found, f)} {names[f]} images, official {getattr(official, f)}"
        for f in fields
        if getattr(found, f) != getattr(official, f)
    ]


def _start_of(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(4096)

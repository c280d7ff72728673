"""The two benchmarks that this method is published on: their categories, counts and licences.

Counts are those of the official releases (MVTec AD: 3629 training and 1725 test images; VisA:
8659 and 2162 in its one-class split). A subset on disk is fine; every difference becomes a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spg_pipe.datasets.layouts.listing import Entry
from spg_pipe.datasets.manifest import LABEL_NORMAL
from spg_pipe.errors import listed

COUNTED = ("training", "normal test", "anomalous test")
"""What a category's three numbers of images are of."""


@dataclass(frozen=True)
class Benchmark:
    """A published dataset."""

    name: str
    licence: str
    source: str
    """Where the official copy is, in words."""
    categories: dict[str, tuple[int, int, int]]
    """Numbers of images: `COUNTED`."""


MVTEC_AD = Benchmark(
    name="MVTec AD",
    licence="CC BY-NC-SA 4.0 (non-commercial)",
    source="its official page, https://www.mvtec.com/company/research/datasets/mvtec-ad",
    categories={
        "bottle": (209, 20, 63),
        "cable": (224, 58, 92),
        "capsule": (219, 23, 109),
        "carpet": (280, 28, 89),
        "grid": (264, 21, 57),
        "hazelnut": (391, 40, 70),
        "leather": (245, 32, 92),
        "metal_nut": (220, 22, 93),
        "pill": (267, 26, 141),
        "screw": (320, 41, 119),
        "tile": (230, 33, 84),
        "toothbrush": (60, 12, 30),
        "transistor": (213, 60, 40),
        "wood": (247, 19, 60),
        "zipper": (240, 32, 119),
    },
)

VISA = Benchmark(
    name="VisA",
    licence="CC BY 4.0",
    source="its official page, https://github.com/amazon-science/spot-diff (VisA_20220922.tar)",
    categories={
        "candle": (900, 100, 100),
        "capsules": (542, 60, 100),
        "cashew": (450, 50, 100),
        "chewinggum": (453, 50, 100),
        "fryum": (450, 50, 100),
        "macaroni1": (900, 100, 100),
        "macaroni2": (900, 100, 100),
        "pcb1": (904, 100, 100),
        "pcb2": (901, 100, 100),
        "pcb3": (905, 101, 100),
        "pcb4": (904, 101, 100),
        "pipe_fryum": (450, 50, 100),
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
    return benchmark if any("mvtec" in _start(p) for p in texts) else None


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
    split: str,
) -> list[str]:
    """Notes on missing and unknown categories and on counts that are not the official ones.

    `entries` are the images of the `wanted` categories; `split` says which counts to compare.
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
    if different := [n for c in compared for n in _differences(c, known[c], entries, split)]:
        notes += different
    elif compared:
        notes.append(f"{name}: image counts as in the official release (split: {split})")
    return notes


def _differences(
    category: str, official: Sequence[int], entries: Sequence[Entry], split: str
) -> list[str]:
    images = [e for e in entries if e.category == category]
    tests = [e.label == LABEL_NORMAL for e in images if not e.train]
    on_disk = (len(images) - len(tests), sum(tests), len(tests) - sum(tests))
    compared = {"train": COUNTED[:1], "test": COUNTED[1:]}.get(split, COUNTED)
    return [
        f"{category}: {there} {what} images, official {count}"
        for what, there, count in zip(COUNTED, on_disk, official, strict=True)
        if what in compared and there != count
    ]


def _start(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(4096).lower()

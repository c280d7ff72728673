"""Built-in demo sets: real photographs, painted defects, exact masks, from a seed.

Two sets that share no photograph and no kind of defect, one in the layout of MVTec AD and one in
that of VisA. Both are generated from photographs in scikit-image's wheel, so that the whole
pipeline runs without a download. They show that everything works; they say little about how well
a detector does on real defects.
"""

import csv
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.artefacts.record import Record, read_record, write_record
from spg_pipe.datasets.layouts.visa import COLUMNS, SPLIT_FILE
from spg_pipe.datasets.names import GOOD
from spg_pipe.datasets.paint.catalogue import DEMO_SETS, DemoSet
from spg_pipe.datasets.paint.drawn import paint
from spg_pipe.datasets.paint.folders import is_made, save_image
from spg_pipe.datasets.paint.photographs import read_photograph, view
from spg_pipe.errors import SpgError

DEMO_VERSION = 1
"""Raised whenever the same seed gives other images."""
RECORD = "demo.json"

_SENSOR_NOISE = 0.004
"""Standard deviation, of a range of 1."""
_ABOUT = """\
{name}: generated images. They are cut from photographs that scikit-image ships and
carry painted defects; category, photograph and its licence as scikit-image states it:
"""


class DemoRecord(Record):
    """demo.json: what the folder holds."""

    name: str
    version: int
    seed: int
    licence: str
    files: dict[str, str]
    """Path → SHA-256 of every other file."""


@dataclass(frozen=True)
class Sample:
    """One image of a demo set."""

    category: str
    split: str
    """`train` or `test`."""
    defect: str
    """`good`, or the painter's name."""
    number: int
    """Counts from 0 within split and defect."""
    image: np.ndarray
    """(S, S, 3) uint8."""
    mask: np.ndarray
    """(S, S) bool: the pixels that the painter touched."""


def write_demo(name: str, root: Path, *, seed: int = 0) -> None:
    """Generate a built-in demo set.

    The set appears as a whole, the same seed gives the same bytes. A root that already holds this
    set (same version, same seed, all files unchanged) is left alone; one that holds another version
    or seed, or a damaged copy, is replaced. SpgError if it holds anything else.
    """
    demo, root = DEMO_SETS[name], Path(root).resolve()  # a link to a folder stays one
    head = DemoRecord(name=name, version=DEMO_VERSION, seed=seed, licence=demo.licence, files={})
    what = f"demo set {name}"

    def recorded() -> tuple[bool, dict[str, str]]:
        record = read_record(root / RECORD, DemoRecord, what, "spg-pipe demo")
        if record.name != name:
            raise SpgError(f"{root} holds the demo set {record.name}.")
        return record.model_copy(update={"files": {}}) == head, record.files

    if is_made(root, what, RECORD, recorded):
        return
    with fresh_folder(root) as folder:
        _write_images(demo, folder, seed)
        about = _ABOUT.format(name=name) + "".join(
            f"  {category}: {photograph.file}, {photograph.licence}\n"
            for category, photograph in demo.categories.items()
        )
        (folder / "LICENSE.txt").write_text(about, encoding="utf-8")
        files = file_digests(folder, ".")
        write_record(folder / RECORD, head.model_copy(update={"files": files}))


def samples(demo: DemoSet, seed: int) -> Iterator[Sample]:
    """Every image of a demo set, category by category.

    Each image has its own random generator, seeded by the seed and its place in the set.
    """
    for category, photograph in demo.categories.items():
        pixels = read_photograph(photograph)
        for split, defect, number in _places(demo):
            place = zlib.crc32(f"{demo.name}/{category}/{split}/{defect}".encode())
            rng = np.random.default_rng([seed, place, number])
            image = view(pixels, demo.image_size, rng)
            mask = np.zeros(image.shape[:2], bool)
            if defect != GOOD:
                image, mask = paint(image, defect, rng)
            # After the painting, so that a defect does not lack the camera's noise.
            image = np.clip(image + rng.normal(0, _SENSOR_NOISE, image.shape), 0, 1)
            levels = np.rint(image * 255).astype(np.uint8)
            yield Sample(category, split, defect, number, levels, mask)


def _places(demo: DemoSet) -> Iterator[tuple[str, str, int]]:
    """(split, defect, number) of the images of a category."""
    yield from (("train", GOOD, number) for number in range(demo.train))
    yield from (("test", GOOD, number) for number in range(demo.normal))
    for number in range(demo.anomalous):
        kinds = len(demo.painters)
        yield "test", demo.painters[number % kinds], number // kinds


def _write_images(demo: DemoSet, root: Path, seed: int) -> None:
    """Write every image and mask where the layout has them, and VisA's split file."""
    rows = []
    for sample in samples(demo, seed):
        image, mask, value = (
            _mvtec_paths(sample) if demo.layout == "mvtec" else _visa_paths(sample, demo)
        )
        save_image(sample.image, root / image)
        if mask:
            save_image(sample.mask.astype(np.uint8) * np.uint8(value), root / mask)
        label = "anomaly" if mask else "normal"
        rows.append((sample.category, sample.split, label, image, mask))
    if demo.layout == "visa":
        path = root / SPLIT_FILE
        path.parent.mkdir()
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def _mvtec_paths(sample: Sample) -> tuple[str, str, int]:
    """Paths of image and mask, "" for a normal one, and the mask's value of a defect."""
    name = f"{sample.defect}/{sample.number:03d}"
    mask = f"{sample.category}/ground_truth/{name}_mask.png" if sample.defect != GOOD else ""
    return f"{sample.category}/{sample.split}/{name}.png", mask, 255


def _visa_paths(sample: Sample, demo: DemoSet) -> tuple[str, str, int]:
    """As `_mvtec_paths`; normal images are numbered over both splits, defects over all kinds."""
    data = f"{sample.category}/Data"
    if sample.defect == GOOD:
        number = sample.number + (demo.train if sample.split == "test" else 0)
        return f"{data}/Images/Normal/{number:04d}.JPG", "", 0
    kind = demo.painters.index(sample.defect)
    name = f"Anomaly/{sample.number * len(demo.painters) + kind:03d}"
    return f"{data}/Images/{name}.JPG", f"{data}/Masks/{name}.png", kind + 1

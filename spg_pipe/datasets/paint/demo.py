"""Built-in demo sets: real photographs, painted defects, exact masks, from a seed.

Two sets that share no photograph and no kind of defect, one in the layout of MVTec AD and one in
that of VisA. Both are generated from photographs in scikit-image's wheel, so that the whole
pipeline runs without a download. They show that everything works; they say little about how well
a detector does on real defects.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.artefacts.record import Record, read_record, write_record
from spg_pipe.datasets.paint.catalogue import DEMO_SETS, DemoSet
from spg_pipe.datasets.paint.folders import is_made
from spg_pipe.errors import SpgError

if TYPE_CHECKING:
    from spg_pipe.datasets.paint.demo_images import Sample

DEMO_VERSION = 1
"""Raised whenever the same seed gives other images."""
RECORD = "demo.json"
_JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
_PNG = {"format": "PNG", "compress_level": 1}


class DemoRecord(Record):
    """demo.json: what the folder holds."""

    name: str
    version: int
    seed: int
    licence: str
    files: dict[str, str]
    """Path → SHA-256 of every other file."""


def write_demo(name: str, root: Path, *, seed: int = 0) -> None:
    """Generate a built-in demo set.

    The set appears as a whole. A root that already holds this set (same version, same seed, all
    files unchanged) is left alone; one that holds another version or seed, or a damaged copy, is
    replaced.

    Parameters
    ----------
    name
        A key of `DEMO_SETS`.
    root
        The dataset's folder: missing, empty, or a demo set of this name.
    seed
        Of the generator, not negative: the same seed gives the same bytes.

    Raises
    ------
    SpgError
        The name is unknown, the seed negative, or the root holds something else.
    """
    if name not in DEMO_SETS:
        known = ", ".join(sorted(DEMO_SETS))
        raise SpgError(f"There is no demo set {name!r}: the built-in ones are {known}.")
    if seed < 0:
        raise SpgError(f"The demo set's seed is {seed}; it must be 0 or more.")
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
        (folder / "LICENSE.txt").write_text(_licence_text(demo), encoding="utf-8")
        files = file_digests(folder, ".")
        write_record(folder / RECORD, head.model_copy(update={"files": files}))


def _write_images(demo: DemoSet, root: Path, seed: int) -> None:
    from spg_pipe.datasets.paint.demo_images import samples

    if demo.layout == "mvtec":
        for sample in samples(demo, seed):
            _write_mvtec(sample, root)
    else:
        rows = [_write_visa(demo, sample, root) for sample in samples(demo, seed)]
        _write_split(root / "split_csv" / "1cls.csv", rows)


def _licence_text(demo: DemoSet) -> str:
    lines = [
        f"{demo.name}: generated images. They are cut from photographs that scikit-image ships and",
        "carry painted defects; category, photograph and its licence as scikit-image states it:",
        *(f"  {name}: {p.file}, {p.licence}" for name, p in demo.categories.items()),
    ]
    return "\n".join(lines) + "\n"


def _write_mvtec(sample: Sample, root: Path) -> None:
    category = root / sample.category
    stem = f"{sample.number:03d}"
    _save(sample.image, category / sample.split / sample.defect / f"{stem}.png", _PNG)
    if sample.defect != "good":
        mask = sample.mask.astype("uint8") * 255
        _save(mask, category / "ground_truth" / sample.defect / f"{stem}_mask.png", _PNG)


def _write_visa(demo: DemoSet, sample: Sample, root: Path) -> tuple[str, ...]:
    """Write an image and its mask; return its row of the split file."""
    data = f"{sample.category}/Data"
    if sample.defect == "good":
        number = sample.number + (demo.train if sample.split == "test" else 0)
        image = f"{data}/Images/Normal/{number:04d}.JPG"
        _save(sample.image, root / image, _JPEG)
        return sample.category, sample.split, "normal", image, ""
    kind = demo.painters.index(sample.defect)
    stem = f"{sample.number * len(demo.painters) + kind:03d}"
    image, mask = f"{data}/Images/Anomaly/{stem}.JPG", f"{data}/Masks/Anomaly/{stem}.png"
    _save(sample.image, root / image, _JPEG)
    _save(sample.mask.astype("uint8") * (kind + 1), root / mask, _PNG)
    return sample.category, sample.split, "anomaly", image, mask


def _save(levels: object, path: Path, options: dict[str, object]) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path, **options)  # type: ignore[arg-type]


def _write_split(path: Path, rows: list[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("object", "split", "label", "image", "mask"))
        writer.writerows(rows)

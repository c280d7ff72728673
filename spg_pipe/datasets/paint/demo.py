"""Writing a demo set to disk, in the layout of MVTec AD or of VisA."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.datasets.paint.demo.catalogue import DEMO_SETS, DemoSet
from spg_pipe.errors import SpgError

if TYPE_CHECKING:
    from spg_pipe.datasets.paint.demo.samples import Sample

DEMO_VERSION = 1
"""Raised whenever the same seed gives other images."""
RECORD = "demo.json"
_JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
_PNG = {"format": "PNG", "compress_level": 1}


def write_demo(name: str, root: Path, *, seed: int = 0) -> None:
    """Generate a built-in demo set.

    The set is written beside `root` and renamed, so that `root` never holds half of one. A root
    that already holds this set (same version, same seed, all files unchanged) is left alone; one
    that holds another version or seed, or a damaged copy, is replaced.

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
        raise SpgError(f"There is no demo set {name!r}: the built-in ones are {_names()}.")
    if seed < 0:
        raise SpgError(f"The demo set's seed is {seed}; it must be 0 or more.")
    demo, root = DEMO_SETS[name], Path(root)
    existing = _existing(demo, root)
    if existing == _record(demo, seed, root):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    part = root.with_name(f".{root.name}.part-{os.getpid()}")
    try:
        _write(demo, part, seed)
        _replace(root, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _names() -> str:
    return ", ".join(sorted(DEMO_SETS))


def _existing(demo: DemoSet, root: Path) -> dict[str, object] | None:
    """The record of the demo set in `root`; None where there is nothing.

    Raises
    ------
    SpgError
        There is something else in `root`.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    advice = "Name another folder, or move it away first."
    if not root.is_dir():
        raise SpgError(f"{root} is a file; the demo set {demo.name} needs a folder. {advice}")
    try:
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
        known = record["name"] == demo.name and isinstance(record["files"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise SpgError(
            f"{root} is not empty and does not hold the demo set {demo.name} (no {RECORD} that "
            f"says so): it is left alone. {advice}"
        )
    if foreign := sorted(set(_files(root)) - set(record["files"])):
        raise SpgError(
            f"{root} holds files that are not part of the demo set, {foreign[0]} for one: they "
            f"would be lost. {advice}"
        )
    return dict(record)


def _files(root: Path) -> list[str]:
    """All files but the record, relative to the root, in order."""
    found = (p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir())
    return sorted(path for path in found if path != RECORD)


def _record(demo: DemoSet, seed: int, root: Path) -> dict[str, object]:
    """What demo.json says of the files that are in `root` now."""
    digests = {p: hashlib.sha256((root / p).read_bytes()).hexdigest() for p in _files(root)}
    return {
        "name": demo.name,
        "version": DEMO_VERSION,
        "seed": seed,
        "licence": demo.licence,
        "files": digests,
    }


def _write(demo: DemoSet, root: Path, seed: int) -> None:
    from spg_pipe.datasets.paint.demo.samples import samples

    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    rows = []
    for sample in samples(demo, seed):
        if demo.layout == "mvtec":
            _write_mvtec(sample, root)
        else:
            rows.append(_write_visa(demo, sample, root))
    if rows:
        _write_split(root / "split_csv" / "1cls.csv", rows)
    (root / "LICENSE.txt").write_text(_licence_text(demo), encoding="utf-8")
    record = _record(demo, seed, root)
    (root / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


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


def _replace(root: Path, part: Path) -> None:
    """Put the finished folder in the place of what `_existing` allowed to be there."""
    if root.exists():
        old = root.with_name(f".{root.name}.old-{os.getpid()}")
        root.rename(old)
        part.rename(root)
        shutil.rmtree(old)
    else:
        part.rename(root)

"""Writing a synthetic set: normal images as they are, and copies with one painted defect each."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.artefacts.record import write_record
from spg_pipe.datasets.images import read_image
from spg_pipe.datasets.layouts.mvtec import GOOD
from spg_pipe.datasets.layouts.synthetic import (
    KIND,
    RECORD,
    Settings,
    Source,
    SyntheticRecord,
    mask_of,
    read_synthetic,
)
from spg_pipe.datasets.manifest import LABEL_NORMAL, LABEL_UNKNOWN, Manifest
from spg_pipe.datasets.paint.folders import is_made, save_image
from spg_pipe.errors import SpgError, counted
from spg_pipe.recipe.data import KINDS, DefectKind
from spg_pipe.recipe.machine import cpu_workers

if TYPE_CHECKING:
    import pandas as pd

GENERATOR = 1
"""Raised whenever the same seed gives other images."""
_THREADS = 8
"""At most: each holds two decoded images."""

Progress = Callable[[int, int], None]


class _Job(NamedTuple):
    """A source image, and what is made of it."""

    path: str
    category: str
    number: int
    """Within its category."""
    kinds: tuple[DefectKind, ...]
    """Of the defects, one for each anomalous copy."""


def write_synthetic(
    source: Manifest,
    root: Path,
    *,
    seed: int = 0,
    per_image: int = 1,
    kinds: Sequence[DefectKind] = KINDS,
    workers: int | None = None,
    progress: Progress | None = None,
) -> bool:
    """Make an auxiliary set with masks from normal images.

    Every normal image is written once as it is and `per_image` times with a defect, the kinds in
    turn, as PNG with the pixels that `read_image` gives. Each image has its own random generator,
    seeded by the seed and its path. The set appears as a whole; one that is there and would be made
    again the same (settings, source images, all files unchanged) is left alone, another synthetic
    set is replaced. Memory does not grow with the number of images. Returned is whether anything
    was written.

    Parameters
    ----------
    source
        Of any layout. Images without labels count as normal if none has a label.
    root
        The set's folder: missing, empty, or a synthetic set.
    seed, per_image, kinds
        As in `recipe.data.SyntheticSet`.
    workers
        Threads; default: one a core, at most 8.
    progress
        Called with (source images done, source images in all).

    Raises
    ------
    SpgError
        The source has no normal images, one of them cannot be read or is too small, the root is
        among the source's images or holds something else.
    """
    root = Path(root).resolve()  # a link to a folder stays one
    if root.is_relative_to(source.root.resolve()):
        raise SpgError(
            f"{root} lies among the source's images ({source.root}), where the synthetic images "
            "would be taken for normal ones. Name a folder outside."
        )
    normal = _normal(source)
    settings = Settings(seed=seed, per_image=per_image, kinds=tuple(kinds))
    head = _head(source, normal, settings)
    if is_made(root, KIND, RECORD, lambda: _recorded(root, head)):
        return False
    jobs = _jobs(normal, settings)
    images: dict[str, str] = {}
    with fresh_folder(root) as folder:
        for done, (job, written) in enumerate(_made(source, jobs, folder, seed, workers), start=1):
            images |= dict.fromkeys(written, job.path)
            if progress:
                progress(done, len(jobs))
        beside = {"images": images, "files_sha256": file_digests(folder, "images", "masks")}
        write_record(folder / RECORD, head.model_copy(update=beside).sealed())
    return True


def _recorded(root: Path, head: SyntheticRecord) -> tuple[bool, dict[str, str]]:
    """Whether a set's record is of the same settings and sources, and the digests of its files."""
    record = read_synthetic(root)
    beside = {"images": {}, "files_sha256": {}, "fingerprint": ""}
    return record.model_copy(update=beside) == head, record.files_sha256


def _made(
    source: Manifest, jobs: Sequence[_Job], folder: Path, seed: int, workers: int | None
) -> Iterator[tuple[_Job, list[str]]]:
    """Each job in order with the paths of the images that it wrote."""
    paths = [job.path for job in jobs]
    with ThreadPoolExecutor(min(_THREADS, cpu_workers(workers))) as pool:
        made = pool.map(lambda job: _make(source, job, paths, folder, seed), jobs)
        yield from zip(jobs, made, strict=True)


def _head(source: Manifest, normal: pd.DataFrame, settings: Settings) -> SyntheticRecord:
    """The record but for the images: all that determines them."""
    licences = "; ".join(source.licences)
    return SyntheticRecord(
        generator=GENERATOR,
        settings=settings,
        licence=f"synthetic defects painted on normal images ({licences})",
        source=Source(
            layout=source.layout,
            split=source.split,
            exif=source.exif,
            licences=source.licences,
            images=dict(zip(normal["path"], normal["sha256"], strict=True)),
        ),
        images={},
        files_sha256={},
    )


def _normal(source: Manifest) -> pd.DataFrame:
    """Rows of the source's normal images: those so labelled, or all where nothing has a label."""
    label = source.table["label"]
    everything = bool((label == LABEL_UNKNOWN).all())
    normal = source.table[(label == LABEL_NORMAL) | everything]
    if normal.empty:
        raise SpgError(
            f"{source.root} has no normal images in its {source.split} split "
            f"({counted(len(source), 'image')}, none in a folder `{GOOD}`). Name a folder of "
            "normal images, or another split."
        )
    return normal


def _jobs(normal: pd.DataFrame, settings: Settings) -> list[_Job]:
    numbers = normal.groupby("category").cumcount().tolist()
    kinds = itertools.cycle(settings.kinds)
    return [
        _Job(path, category, number, tuple(itertools.islice(kinds, settings.per_image)))
        for path, category, number in zip(normal["path"], normal["category"], numbers, strict=True)
    ]


def _make(source: Manifest, job: _Job, paths: Sequence[str], folder: Path, seed: int) -> list[str]:
    import numpy as np

    from spg_pipe.datasets.paint.pasted import LEAST_SIDE, canvas_of, paint

    rng = np.random.default_rng([seed, zlib.crc32(job.path.encode())])
    levels = read_image(source.root / job.path, exif=source.exif)
    height, width = levels.shape[:2]
    if min(height, width) < LEAST_SIDE:
        raise SpgError(
            f"The image {source.root / job.path} is {width}×{height} pixels; a synthetic defect "
            f"needs {LEAST_SIDE}×{LEAST_SIDE}. Remove it, or name larger images."
        )
    other = source.root / paths[int(rng.integers(len(paths)))]
    image = canvas_of(levels, canvas_of(read_image(other, exif=source.exif)))
    normal = f"images/{job.category}/{GOOD}/{job.number:05d}.png"
    save_image(levels[..., 0] if image.grey else levels, folder / normal)
    written = [normal]
    for n, kind in enumerate(job.kinds):
        painted, mask = paint(image, kind, rng)
        path = f"images/{job.category}/{kind}/{job.number:05d}-{n}.png"
        save_image(painted[..., 0] if image.grey else painted, folder / path)
        save_image(mask * np.uint8(255), folder / mask_of(path))
        written.append(path)
    return written

"""Writing a synthetic set: normal images as they are, and copies with one painted defect each."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.artefacts.record import write_record
from spg_pipe.datasets.build import Progress
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
from spg_pipe.datasets.names import GOOD
from spg_pipe.datasets.paint.folders import is_made, save_image
from spg_pipe.datasets.paint.pasted import LEAST_SIDE, canvas_of, paint
from spg_pipe.errors import SpgError, counted
from spg_pipe.images.reading import read_image
from spg_pipe.recipe.data import SyntheticSet
from spg_pipe.recipe.machine import cpu_workers

GENERATOR = 1
"""Raised whenever the same seed gives other images."""
_THREADS = 8
"""At most: each holds two decoded images."""


def write_synthetic(
    source: Manifest,
    made: SyntheticSet,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> bool:
    """Make an auxiliary set with masks from normal images.

    Every normal image is written once as it is and `per_image` times with a defect, the kinds in
    turn, as PNG with the pixels that `read_image` gives. Each image has its own random generator,
    seeded by the seed and its path. The set appears as a whole; one that is there and would be made
    again the same (settings, source images, all files unchanged) is left alone, another synthetic
    set is replaced. Memory does not grow with the number of images.

    Parameters
    ----------
    source
        Of any layout. Images without labels count as normal if none has a label.
    made
        The set's folder (missing, empty, or a synthetic set), and its settings.
    workers
        Threads; default: one a core, at most 8.
    progress
        Called with (source images done, source images in all).

    Returns
    -------
    bool
        Whether anything was written.

    Raises
    ------
    SpgError
        The source has no normal images, one of them cannot be read or is too small, the root is
        among the source's images or holds something else.
    """
    root = made.root.resolve()  # a link to a folder stays one
    if root.is_relative_to(source.root.resolve()):
        raise SpgError(
            f"{root} lies among the source's images ({source.root}), where the synthetic images "
            "would be taken for normal ones. Name a folder outside."
        )
    normal = _normal(source)
    head = _head(source, normal, made)
    if is_made(root, KIND, RECORD, lambda: _recorded(root, head)):
        return False
    threads = min(_THREADS, cpu_workers(workers))
    images: dict[str, str] = {}
    with fresh_folder(root) as folder, ThreadPoolExecutor(threads) as pool:
        paint = partial(_paint_copies, source, normal, head.settings, folder)
        for row, written in enumerate(pool.map(paint, range(len(normal)))):
            images |= dict.fromkeys(written, normal["path"].iloc[row])
            if progress:
                progress(row + 1, len(normal))
        digests = file_digests(folder, "images", "masks")
        record = head.model_copy(update={"images": images, "files_sha256": digests})
        write_record(folder / RECORD, record.sealed())
    return True


def _recorded(root: Path, head: SyntheticRecord) -> tuple[bool, dict[str, str]]:
    """Whether a set's record is of the same settings and sources, and the digests of its files."""
    record = read_synthetic(root)
    blank = {"images": {}, "files_sha256": {}, "fingerprint": ""}
    return record.model_copy(update=blank) == head, record.files_sha256


def _head(source: Manifest, normal: "pd.DataFrame", made: SyntheticSet) -> SyntheticRecord:
    """The record but for the images: all that determines them."""
    return SyntheticRecord(
        generator=GENERATOR,
        settings=Settings(seed=made.seed, per_image=made.per_image, kinds=made.kinds),
        licence=f"synthetic defects painted on normal images ({'; '.join(source.licences)})",
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


def _normal(source: Manifest) -> "pd.DataFrame":
    """Rows of the source's normal images: those so labelled, or all where nothing has a label.

    Column `number` counts them within their category.
    """
    label = source.table["label"]
    unlabelled = bool((label == LABEL_UNKNOWN).all())
    normal = source.table[(label == LABEL_NORMAL) | unlabelled]
    if normal.empty:
        raise SpgError(
            f"{source.root} has no normal images in its {source.split} split "
            f"({counted(len(source), 'image')}, none in a folder `{GOOD}`). Name a folder of "
            "normal images, or another split."
        )
    return normal.assign(number=normal.groupby("category").cumcount())


def _paint_copies(
    source: Manifest, normal: "pd.DataFrame", settings: Settings, folder: Path, row: int
) -> list[str]:
    """Write a normal image and its copies with defects; the paths of all of them."""
    path, category, number = normal[["path", "category", "number"]].iloc[row]
    rng = np.random.default_rng([settings.seed, zlib.crc32(path.encode())])
    read = partial(read_image, exif=source.exif, white=source.white)
    levels = read(source.root / path)
    height, width = levels.shape[:2]
    if min(height, width) < LEAST_SIDE:
        raise SpgError(
            f"The image {source.root / path} is {width}×{height} pixels; a synthetic defect "
            f"needs {LEAST_SIDE}×{LEAST_SIDE}. Remove it, or name larger images."
        )
    other = source.root / normal["path"].iloc[int(rng.integers(len(normal)))]
    image = canvas_of(levels, canvas_of(read(other)))

    def save(levels: "np.ndarray", path: str) -> None:
        save_image(levels[..., 0] if image.grey else levels, folder / path)

    written = [f"images/{category}/{GOOD}/{number:05d}.png"]
    save(levels, written[0])
    for copy in range(settings.per_image):
        # The kinds take turns over all copies of all images.
        kind = settings.kinds[(row * settings.per_image + copy) % len(settings.kinds)]
        painted, mask = paint(image, kind, rng)
        written.append(f"images/{category}/{kind}/{number:05d}-{copy}.png")
        save(painted, written[-1])
        save_image(mask * np.uint8(255), folder / mask_of(written[-1]))
    return written

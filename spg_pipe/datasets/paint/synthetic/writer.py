"""Writing a synthetic set: normal images as they are, and copies with one painted defect each."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spg_pipe.artefacts.digests import FILES, file_digests, require_files
from spg_pipe.artefacts.files import fingerprint, fresh_folder, write_json
from spg_pipe.datasets.images import read_image
from spg_pipe.datasets.layouts.mvtec import GOOD
from spg_pipe.datasets.layouts.synthetic import AGAIN, FORMAT, KIND, RECORD, read_record
from spg_pipe.datasets.manifest import LABEL_NORMAL, LABEL_UNKNOWN, Manifest
from spg_pipe.errors import DamagedError, SpgError, counted, listed
from spg_pipe.recipe.data import KINDS
from spg_pipe.recipe.machine import cpu_workers

if TYPE_CHECKING:
    import numpy as np

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
    kinds: tuple[str, ...]
    """Of the defects, one for each anomalous copy."""


def write_synthetic(
    source: Manifest,
    root: Path,
    *,
    seed: int = 0,
    per_image: int = 1,
    kinds: Sequence[str] = KINDS,
    workers: int | None = None,
    progress: Progress | None = None,
) -> bool:
    """Make an auxiliary set with masks from normal images.

    Every normal image of the source is written once as it is and `per_image` times with one defect,
    the kinds in turn, as PNG with the pixels that `read_image` gives. Each image has a random
    generator of its own, seeded by the seed and its path. The set appears as a whole; one that is
    already there and would be made again the same (settings, source images, all files unchanged) is
    left alone, another synthetic set is replaced. Memory does not grow with the number of images.

    Parameters
    ----------
    source
        Of any layout. Images without labels count as normal if none has a label.
    root
        The set's folder: missing, empty, or a synthetic set.
    seed
        Not negative.
    per_image
        Anomalous copies of each normal image, at least 1.
    kinds
        Of `KINDS`, each once.
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
        A setting is out of range, the source has no normal images, one of them cannot be read or is
        too small, the root is among the source's images or holds something else.
    """
    _require_settings(seed, per_image, kinds)
    root = Path(root).resolve()  # a link to a folder stays one
    if root.is_relative_to(source.root.resolve()):
        raise SpgError(
            f"{root} lies among the source's images ({source.root}), where the synthetic images "
            "would be taken for normal ones. Name a folder outside."
        )
    head = _head(source, seed, per_image, kinds)
    if _is_made(root, head):
        return False
    jobs = _jobs(source, per_image, kinds)
    with fresh_folder(root) as folder:
        rows = []
        for done, of_one in enumerate(_made(source, jobs, folder, seed, workers), start=1):
            rows += of_one
            if progress:
                progress(done, len(jobs))
        record = head | {"images": rows}
        files = file_digests(folder, "images", "masks")
        content = record | {"fingerprint": fingerprint(record), FILES: files}
        write_json(folder / RECORD, content)
    return True


def _require_settings(seed: int, per_image: int, kinds: Sequence[str]) -> None:
    if seed < 0:
        raise SpgError(f"The synthetic set's seed is {seed}; it must be 0 or more.")
    if per_image < 1:
        raise SpgError(f"{per_image} anomalous copies of each image; expected 1 or more.")
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise SpgError(
            f"Kinds of synthetic defects: found {', '.join(kinds) or 'none'}; expected some of "
            f"{', '.join(KINDS)}, each once."
        )


def _head(source: Manifest, seed: int, per_image: int, kinds: Sequence[str]) -> dict[str, Any]:
    """The record but for the images: all that determines them."""
    normal = _normal(source)
    licences = "; ".join(source.licences)
    return {
        "kind": KIND,
        "format": FORMAT,
        "generator": GENERATOR,
        "settings": {"seed": seed, "per_image": per_image, "kinds": list(kinds)},
        "licence": f"synthetic defects painted on normal images ({licences})",
        "source": {
            "layout": source.layout,
            "split": source.split,
            "exif": source.exif,
            "licences": list(source.licences),
            "images": dict(zip(normal["path"], normal["sha256"], strict=True)),
        },
    }


def _normal(source: Manifest) -> Any:
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


def _is_made(root: Path, head: dict[str, Any]) -> bool:
    """Whether the root holds this very set already.

    Raises
    ------
    SpgError
        There is something in the root that is not a synthetic set's.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = "It is left alone. Name another folder, or move it away first."
    if not root.is_dir():
        raise SpgError(f"{root} is a file; a synthetic set is a folder. {advice}")
    try:
        record = read_record(root)
    except SpgError as error:
        raise SpgError(f"{root} is not empty and holds no synthetic set. {advice}") from error
    if foreign := _foreign(root, record.files_sha256):
        raise SpgError(
            f"{root} holds what is not of the synthetic set: {listed(foreign)}. {advice}"
        )
    if record.model_dump(mode="json", include=set(head)) != head:
        return False
    try:
        require_files(root, {FILES: record.files_sha256}, KIND, AGAIN)
    except DamagedError:
        return False
    return True


def _foreign(root: Path, files: Mapping[str, str]) -> list[str]:
    """What lies in a set's folder and would vanish with it: files, empty folders, links to any."""
    own = {*files, RECORD}
    return [
        name
        for path in sorted(root.rglob("*"))
        if (name := path.relative_to(root).as_posix()) not in own
        and (path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    ]


def _jobs(source: Manifest, per_image: int, kinds: Sequence[str]) -> list[_Job]:
    jobs: list[_Job] = []
    number: dict[str, int] = {}
    normal = _normal(source)
    for path, category in zip(normal["path"], normal["category"], strict=True):
        first = len(jobs) * per_image
        turns = tuple(kinds[(first + n) % len(kinds)] for n in range(per_image))
        jobs.append(_Job(path, category, number.get(category, 0), turns))
        number[category] = jobs[-1].number + 1
    return jobs


def _made(
    source: Manifest, jobs: Sequence[_Job], folder: Path, seed: int, workers: int | None
) -> Iterator[list[dict[str, str]]]:
    """Rows of each source image, in order; its files are written."""
    paths = [job.path for job in jobs]
    pool = ThreadPoolExecutor(min(_THREADS, cpu_workers(workers)))
    try:
        yield from pool.map(lambda job: _make(source, job, paths, folder, seed), jobs)
    finally:  # also when one fails, or by Ctrl-C
        pool.shutdown(cancel_futures=True)


def _make(
    source: Manifest, job: _Job, paths: Sequence[str], folder: Path, seed: int
) -> list[dict[str, str]]:
    import numpy as np

    from spg_pipe.datasets.paint.synthetic.defects import LEAST_SIDE, canvas_of, paint

    rng = np.random.default_rng([seed, zlib.crc32(job.path.encode())])
    image = canvas_of(read_image(source.root / job.path, exif=source.exif))
    if image.side < LEAST_SIDE:
        height, width = image.levels.shape[:2]
        raise SpgError(
            f"The image {source.root / job.path} is {width}×{height} pixels; a synthetic defect "
            f"needs {LEAST_SIDE}×{LEAST_SIDE}. Remove it, or name larger images."
        )
    other = canvas_of(
        read_image(source.root / paths[int(rng.integers(len(paths)))], exif=source.exif)
    )
    stem = f"{job.number:05d}"
    rows = [_row(job, GOOD, f"{stem}.png", "")]
    _save(image.levels[..., 0] if image.grey else image.levels, folder / rows[0]["path"])
    for n, kind in enumerate(job.kinds):
        painted, mask = paint(image, other, kind, rng)
        name = f"{stem}-{n}.png"
        row = _row(job, kind, name, f"masks/{job.category}/{kind}/{name}")
        _save(painted[..., 0] if image.grey else painted, folder / row["path"])
        _save(mask * np.uint8(255), folder / row["mask"])
        rows.append(row)
    return rows


def _row(job: _Job, defect: str, name: str, mask: str) -> dict[str, str]:
    return {
        "path": f"images/{job.category}/{defect}/{name}",
        "mask": mask,
        "category": job.category,
        "defect": defect,
        "source": job.path,
    }


def _save(levels: np.ndarray, path: Path) -> None:
    """PNG of (H, W) uint8 or uint16, or of (H, W, 3) uint8: `read_image` reads these values."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path, compress_level=1)

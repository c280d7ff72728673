"""From a root folder to a Manifest: scan, choose categories, look into every file once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from spg_pipe.datasets.images import stored_size
from spg_pipe.datasets.layouts import LAYOUTS, Layout, honours_exif
from spg_pipe.datasets.listing import Entry, Select, counted, listed
from spg_pipe.datasets.manifest import Manifest, to_frame
from spg_pipe.datasets.official import BENCHMARKS, check, identify, licence_of, not_the_benchmark
from spg_pipe.errors import SpgError

Progress = Callable[[int, int], None]

SPLITS = ("test", "train", "all")
HASH_THREADS = 2


class _Part(NamedTuple):
    """One root of a dataset: all of it, or one set of a union."""

    entries: list[Entry]
    categories: list[str]
    notes: list[str]
    licence: str


def build_manifest(
    name: str,
    layout: str,
    root: Path,
    *,
    split: str = "test",
    sets: Sequence[str] = (),
    categories: Sequence[str] | None = None,
    licence: str | None = None,
    exif_of_own_images: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Find a dataset's images and masks and record their names, sizes and content hashes.

    Only headers are read, not pixels; every file's bytes are hashed.

    Parameters
    ----------
    name
        The dataset's name in parameters and artefacts.
    layout
        `mvtec`, `visa` or `folder`.
    root
        The dataset's folder.
    split
        `test`, `train` or `all`.
    sets
        A union: `root/<set>` is a root of the layout each, categories become `<set>/<category>`.
    categories
        Only these (with the set's prefix in a union); None for all on disk.
    licence
        The licence of the images, in place of what the layout or a licence file says.
    exif_of_own_images
        Whether layout `folder` honours EXIF orientation (docs/method.md §5).
    progress
        Called with (images done, images in all).

    Raises
    ------
    SpgError
        Unknown layout, split or category; a folder, image or mask that is missing; a file that
        is no image; a mask whose size is not its image's.
    """
    entries, parts = _found(name, layout, root, split, sets, categories)
    exif = honours_exif(layout, exif_of_own_images)
    # A dict keeps the order and drops repetitions.
    stated = tuple(dict.fromkeys(part.licence for part in parts if part.entries))
    return Manifest(
        dataset=name,
        split=split,
        layout=layout,
        root=root,
        table=to_frame(_rows(root, entries, exif, progress)),
        licences=(f"{name}: {licence}",) if licence else stated,
        notes=tuple(note for part in parts for note in part.notes),
        exif=exif,
    )


def list_images(
    name: str,
    layout: str,
    root: Path,
    *,
    split: str = "test",
    sets: Sequence[str] = (),
    categories: Sequence[str] | None = None,
) -> list[str]:
    """The relative paths that `build_manifest` would list, in its order, without opening a file.

    Raises
    ------
    SpgError
        As `build_manifest`, but for what only a file's content shows.
    """
    entries, _ = _found(name, layout, root, split, sets, categories)
    return [entry.path for entry in entries]


def _found(
    name: str,
    layout: str,
    root: Path,
    split: str,
    sets: Sequence[str],
    categories: Sequence[str] | None,
) -> tuple[list[Entry], list[_Part]]:
    """The images that are wanted, in order, and where they were found; names only."""
    if layout not in LAYOUTS:
        raise SpgError(
            f"Dataset {name}: unknown layout {layout!r}, known are {', '.join(LAYOUTS)}."
        )
    if split not in SPLITS:
        raise SpgError(f"Dataset {name}: unknown split {split!r}, known are {', '.join(SPLITS)}.")
    for folder in [root / part for part in sets] or [root]:
        if not folder.is_dir():
            raise SpgError(_no_root(name, LAYOUTS[layout], folder))
    chosen = None if categories is None else set(categories)
    if sets:
        parts = [_prefixed(s, _scan(s, layout, root / s, split, _within(chosen, s))) for s in sets]
    else:
        parts = [_scan(name, layout, root, split, lambda c: chosen is None or c in chosen)]
    existing = [c for part in parts for c in part.categories]
    if unknown := [c for c in categories or () if c not in existing]:
        raise SpgError(
            f"Dataset {name} in {root} has no category {listed(unknown)}. It has: "
            f"{', '.join(existing)}."
        )
    entries = sorted((e for part in parts for e in part.entries), key=_order)
    if not entries:
        raise SpgError(
            f"Dataset {name} in {root} has no images in its {split} split "
            f"({', '.join(existing)}). Choose another split, or complete the copy."
        )
    _require_plain_names(name, entries)
    return entries, parts


def _scan(name: str, layout: str, root: Path, split: str, select: Select) -> _Part:
    """Scan one root and compare it with the benchmark that it may be."""
    try:
        entries, found, notes = LAYOUTS[layout].scan(root, split, select)
    except OSError as error:
        raise SpgError(
            f"Dataset {name}: {error.filename or root} cannot be read ({error.strerror or error}). "
            f"Check its permissions and whether its disk is there."
        ) from error
    wanted = [category for category in found if select(category)]
    benchmark = identify(layout, name, root, found)
    if benchmark:
        notes = check(benchmark, found, wanted, entries, split) + notes
        return _Part(entries, found, notes, f"{benchmark.name}: {benchmark.licence}")
    notes = not_the_benchmark(layout, name, found) + notes
    return _Part(entries, found, notes, licence_of(name, root, wanted))


def _within(chosen: set[str] | None, part: str) -> Select:
    """Selects categories of one set of a union by their full names."""
    return lambda category: chosen is None or f"{part}/{category}" in chosen


def _prefixed(part: str, found: _Part) -> _Part:
    """A set of a union as a part of it: its name goes in front of everything."""
    entries = [
        replace(
            entry,
            path=f"{part}/{entry.path}",
            category=f"{part}/{entry.category}",
            mask=f"{part}/{entry.mask}" if entry.mask else "",
        )
        for entry in found.entries
    ]
    categories = [f"{part}/{category}" for category in found.categories]
    return _Part(entries, categories, [f"{part}: {n}" for n in found.notes], found.licence)


def _require_plain_names(name: str, entries: Sequence[Entry]) -> None:
    """Each image once (a set or a line of a split file may repeat), and names that are text."""
    times = Counter(entry.path for entry in entries)
    if twice := [path for path, n in times.items() if n > 1]:
        raise SpgError(
            f"Dataset {name} names {counted(len(twice), 'image')} more than once: {listed(twice)}. "
            f"Remove the repeated set, or the repeated line of the split file."
        )
    for path in times:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise SpgError(
                f"Dataset {name}: the file name {path.encode(errors='surrogateescape')!r} is not "
                f"valid UTF-8. Rename the file."
            ) from None


def _order(entry: Entry) -> tuple[str, bool, str, str]:
    return (entry.category, entry.defect != "good", entry.defect, entry.path)


class _File(NamedTuple):
    sha256: str
    size: tuple[int, int]  # height, width


def _rows(
    root: Path, entries: Sequence[Entry], exif: bool, progress: Progress | None
) -> list[dict[str, object]]:
    """Rows of the table; every problem is gathered, so that one message tells them all."""
    rows: list[dict[str, object]] = []
    problems: list[str] = []
    for entry, outcome in _inspected(root, entries, exif):
        if isinstance(outcome, str):
            problems.append(outcome)
        else:
            rows.append(_row(entry, *outcome))
        if progress:
            progress(len(rows) + len(problems), len(entries))
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems[:5])
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise SpgError(
            f"{counted(len(problems), 'image')} of {len(entries)} below {root} cannot be used:"
            f"{lines}{more}\nRepair or remove them."
        )
    return rows


def _inspected(
    root: Path, entries: Sequence[Entry], exif: bool
) -> Iterator[tuple[Entry, tuple[_File, _File | None] | str]]:
    """Each entry with what is known of its files, or with a problem, in order."""
    pool = ThreadPoolExecutor(HASH_THREADS)
    try:
        yield from zip(entries, pool.map(lambda e: _inspect(root, e, exif), entries), strict=True)
    finally:  # also when the caller stops early, by Ctrl-C for example
        pool.shutdown(cancel_futures=True)


def _inspect(root: Path, entry: Entry, exif: bool) -> tuple[_File, _File | None] | str:
    files = []
    for path in (entry.path, entry.mask) if entry.mask else (entry.path,):
        try:
            content = (root / path).read_bytes()
            files.append(
                _File(hashlib.sha256(content).hexdigest(), stored_size(content, exif=exif))
            )
        except Exception as error:  # Pillow's decoders raise a dozen unrelated types
            reason = "not an image that Pillow knows" if "identify" in str(error) else str(error)
            return f"{path}: cannot be read ({reason or type(error).__name__})"
    image, mask = files[0], (files[1] if entry.mask else None)
    if mask and mask.size != image.size:
        return _other_size(root, entry, image, mask, exif)
    return image, mask


def _other_size(root: Path, entry: Entry, image: _File, mask: _File, exif: bool) -> str:
    """Say both sizes (width × height, as viewers show them) and, if it helps, the likely cause."""
    (height, width), (mask_height, mask_width) = image.size, mask.size
    hint = ""
    if exif and mask.size == (width, height):
        hint = (
            "; the image's EXIF orientation turns it by 90 degrees: draw the mask on the upright "
            "image, or remove the tag"
        )
    return (
        f"{entry.path} is {width}×{height} pixels, but its mask {entry.mask} is "
        f"{mask_width}×{mask_height}{hint}"
    )


def _row(entry: Entry, image: _File, mask: _File | None) -> dict[str, object]:
    return {
        "path": entry.path,
        "mask": entry.mask,
        "mask_state": int(entry.mask_state),
        "category": entry.category,
        "defect": entry.defect,
        "label": entry.label,
        "height": image.size[0],
        "width": image.size[1],
        "sha256": image.sha256,
        "mask_sha256": mask.sha256 if mask else "",
    }


def _no_root(name: str, layout: Layout, folder: Path) -> str:
    benchmark = BENCHMARKS.get(layout.info.name)
    get = f" {benchmark.name} comes from {benchmark.source}." if benchmark else ""
    return (
        f"No folder for dataset {name} at {folder.absolute()}. The {layout.info.name} layout "
        f"expects there:\n{layout.info.sketch}\n"
        f"Unpack the data there, or set the root of {name} in params.yaml (under datasets) to "
        f"where it is.{get}"
    )

"""From a root folder to a Manifest: scan, choose categories, look into every file once."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from spg_pipe.datasets.contents import Files, look_into
from spg_pipe.datasets.layouts.catalogue import LAYOUTS, honours_exif
from spg_pipe.datasets.layouts.listing import Entry, Layout, Select
from spg_pipe.datasets.layouts.official import (
    BENCHMARKS,
    check,
    identify,
    licence_of,
    not_the_benchmark,
)
from spg_pipe.datasets.manifest import Manifest, to_frame
from spg_pipe.datasets.skipped import Skipped, skipped_note
from spg_pipe.errors import SpgError, UnsuitableError, counted, listed

Progress = Callable[[int, int], None]

SPLITS = ("test", "train", "all")


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
    skip_bad: bool = False,
    leave_out: Sequence[Skipped] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Find a dataset's images and masks and record their names, sizes and content hashes.

    Only headers are read, not pixels, unless `skip_bad`; every file's bytes are hashed.

    Parameters
    ----------
    name
        The dataset's name in parameters and artefacts.
    layout
        `mvtec`, `visa`, `folder` or `synthetic`.
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
    skip_bad
        Decode every image and mask, and leave out, on record (`Manifest.skipped`), an image that
        cannot be used: unreadable, truncated, or with a mask that is so or has another size.
    leave_out
        Images known to be bad, for instance a store's: left out on record without decoding, while
        their files are the same. One that changed is looked into as any other.
    workers
        Threads that decode for `skip_bad`; default: one a core, at most 8.
    progress
        Called with (images done, images in all).

    Raises
    ------
    SpgError
        Unknown layout, split or category; a folder, image or mask that is missing; without
        `skip_bad` a file that is no image or a mask whose size is not its image's, with it no
        image that can be used.
    """
    entries, parts = _found(name, layout, root, split, sets, categories)
    exif = honours_exif(layout, exif_of_own_images)
    # A dict keeps the order and drops repetitions.
    stated = tuple(dict.fromkeys(part.licence for part in parts if part.entries))
    looked = look_into(
        root, entries, exif=exif, decode=skip_bad, leave_out=leave_out, workers=workers
    )
    rows, skipped = _rows(
        root, looked, len(entries), lambda bad: skip_bad or bad in leave_out, progress
    )
    notes = [note for part in parts for note in part.notes]
    return Manifest(
        dataset=name,
        split=split,
        layout=layout,
        root=root,
        table=to_frame(rows),
        licences=(f"{name}: {licence}",) if licence else stated,
        notes=(*notes, *([skipped_note(skipped)] if skipped else [])),
        exif=exif,
        skipped=tuple(skipped),
        sources={entry.path: entry.source for entry in entries if entry.source},
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
    if split == "train" and not LAYOUTS[layout].splits:
        raise UnsuitableError(
            f"{root} has the {layout} layout, which knows no training split: use the split `test` "
            f"or `all` (both mean every image)."
        )
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
            f"Dataset {name} in {root} has no category {listed(unknown)}."
            f"{_nearest(unknown, existing)} It has: {', '.join(existing)}."
        )
    entries = sorted((e for part in parts for e in part.entries), key=_order)
    if not entries:
        raise UnsuitableError(
            f"Dataset {name} in {root} has no images in its {split} split "
            f"({', '.join(existing)}). Choose another split, or complete the copy."
        )
    _require_plain_names(name, entries)
    return entries, parts


def _nearest(unknown: Sequence[str], existing: Sequence[str]) -> str:
    close = [c for name in unknown for c in difflib.get_close_matches(name, existing, n=1)]
    return f" Did you mean {listed(list(dict.fromkeys(close)))}?" if close else ""


def _scan(name: str, layout: str, root: Path, split: str, select: Select) -> _Part:
    """Scan one root and compare it with the benchmark that it may be."""
    try:
        entries, found, notes, stated = LAYOUTS[layout].scan(root, split, select)
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
    licence = f"{name}: {stated}" if stated else licence_of(name, root, wanted)
    return _Part(entries, found, notes, licence)


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


def _rows(
    root: Path,
    looked: Iterable[tuple[Entry, Files | Skipped]],
    total: int,
    skip: Callable[[Skipped], bool],
    progress: Progress | None,
) -> tuple[list[dict[str, object]], list[Skipped]]:
    """Rows of the table and what was left out; one message tells all problems."""
    rows: list[dict[str, object]] = []
    skipped: list[Skipped] = []
    problems: list[Skipped] = []
    for entry, outcome in looked:
        if isinstance(outcome, Files):
            rows.append(_row(entry, outcome))
        else:
            (skipped if skip(outcome) else problems).append(outcome)
        if progress:
            progress(len(rows) + len(skipped) + len(problems), total)
    if problems or not rows:
        faults = problems or skipped
        lines = "".join(f"\n  {fault}" for fault in faults[:5])
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        leave = (
            ", or leave them out with --skip-bad, which also finds files that are cut off"
            if problems
            else ": no image is left"
        )
        raise SpgError(
            f"{counted(len(faults), 'image')} of {total} below {root} cannot be used:"
            f"{lines}{more}\nRepair or remove them{leave}."
        )
    return rows, skipped


def _row(entry: Entry, files: Files) -> dict[str, object]:
    image, mask = files
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
    benchmark = BENCHMARKS.get(layout.name)
    get = f" {benchmark.name} comes from {benchmark.source}." if benchmark else ""
    return (
        f"No folder for dataset {name} at {folder.absolute()}. The {layout.name} layout "
        f"expects there:\n{layout.sketch}\n"
        f"Unpack the data there, or set the root of {name} in params.yaml (under datasets) to "
        f"where it is.{get}"
    )

"""From a root folder to a Manifest: scan, choose categories, look into every file once."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from spg_pipe.datasets.contents import Row, look_into
from spg_pipe.datasets.layouts.catalogue import LAYOUTS, honours_exif
from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan
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
from spg_pipe.recipe.data import Dataset

Progress = Callable[[int, int], None]


def build_manifest(
    dataset: Dataset,
    *,
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
        Unknown category; a folder, image or mask that is missing; without
        `skip_bad` a file that is no image or a mask whose size is not its image's, with it no
        image that can be used.
    """
    entries, parts = _wanted(dataset)
    exif = honours_exif(dataset.layout, exif_of_own_images)
    # A dict keeps the order and drops repetitions.
    stated = tuple(dict.fromkeys(part.licence for part in parts if part.entries))
    looked = look_into(dataset.root, entries, exif, skip_bad, leave_out, workers)
    skip = (lambda bad: True) if skip_bad else leave_out.__contains__
    rows, skipped = _rows(dataset.root, looked, len(entries), skip, progress)
    notes = [note for part in parts for note in part.notes]
    return Manifest(
        dataset=dataset.name,
        split=dataset.split,
        layout=dataset.layout,
        root=dataset.root,
        table=to_frame(rows),
        licences=(f"{dataset.name}: {dataset.licence}",) if dataset.licence else stated,
        notes=(*notes, *([skipped_note(skipped)] if skipped else [])),
        exif=exif,
        skipped=tuple(skipped),
        sources={entry.path: entry.source for entry in entries if entry.source},
    )


def list_images(dataset: Dataset) -> list[str]:
    """The relative paths that `build_manifest` would list, in its order, without opening a file."""
    return [entry.path for entry in _wanted(dataset)[0]]


def _wanted(dataset: Dataset) -> tuple[list[Entry], list[Scan]]:
    """The images that are wanted, in order, and where they were found; names only."""
    name, root, split, sets = dataset.name, dataset.root, dataset.split, dataset.sets
    layout = LAYOUTS[dataset.layout]
    for folder in [root / part for part in sets] or [root]:
        if not folder.is_dir():
            raise SpgError(_no_root(name, layout, folder))
    if split == "train" and not layout.splits:
        raise UnsuitableError(
            f"{root} has the {layout.name} layout, which knows no training split: use the split "
            f"`test` or `all` (both mean every image)."
        )
    parts = [_scan(dataset, layout, part) for part in sets or ("",)]
    existing = [c for part in parts for c in part.categories]
    if unknown := [c for c in dataset.categories or () if c not in existing]:
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


def _scan(dataset: Dataset, layout: Layout, part: str) -> Scan:
    """Scan the root, or one set of a union, and compare it with the benchmark that it may be.

    A set's name goes in front of everything.
    """
    name, root, prefix = part or dataset.name, dataset.root / part, f"{part}/" if part else ""
    split, chosen = dataset.split, dataset.categories

    def select(category: str) -> bool:
        return chosen is None or prefix + category in chosen

    try:
        scan = layout.scan(root, split, select)
    except OSError as error:
        raise SpgError(
            f"Dataset {name}: {error.filename or root} cannot be read ({error.strerror or error}). "
            f"Check its permissions and whether its disk is there."
        ) from error
    existing = scan.categories
    wanted = [category for category in existing if select(category)]
    if benchmark := identify(layout.name, name, root, existing):
        notes = check(benchmark, existing, wanted, scan.entries, split)
        licence = f"{benchmark.name}: {benchmark.licence}"
    else:
        notes = not_the_benchmark(layout.name, name, existing)
        licence = f"{name}: {scan.licence}" if scan.licence else licence_of(name, root, wanted)
    entries = [
        replace(
            entry,
            path=prefix + entry.path,
            category=prefix + entry.category,
            mask=prefix + entry.mask if entry.mask else "",
        )
        for entry in scan.entries
    ]
    notes = [f"{part}: {note}" if part else note for note in notes + scan.notes]
    return Scan(entries, [prefix + category for category in existing], notes, licence)


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
    looked: Iterable[Row | Skipped],
    total: int,
    skip: Callable[[Skipped], bool],
    progress: Progress | None,
) -> tuple[list[Row], list[Skipped]]:
    """Rows of the table and what was left out; one message tells all problems."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    problems: list[Skipped] = []
    for outcome in looked:
        if isinstance(outcome, Skipped):
            (skipped if skip(outcome) else problems).append(outcome)
        else:
            rows.append(outcome)
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


def _no_root(name: str, layout: Layout, folder: Path) -> str:
    benchmark = BENCHMARKS.get(layout.name)
    get = f" {benchmark.name} comes from {benchmark.source}." if benchmark else ""
    return (
        f"No folder for dataset {name} at {folder.absolute()}. The {layout.name} layout "
        f"expects there:\n{layout.sketch}\n"
        f"Unpack the data there, or set the root of {name} in params.yaml (under datasets) to "
        f"where it is.{get}"
    )

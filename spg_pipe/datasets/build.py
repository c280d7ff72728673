"""From a root folder to a Manifest: scan, choose categories, look into every file once."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from spg_pipe.datasets.layouts.catalogue import LAYOUTS, honours_exif
from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan
from spg_pipe.datasets.layouts.official import BENCHMARKS, recognised
from spg_pipe.datasets.manifest import Manifest, Skipped, first_of, skipped_notes, to_frame
from spg_pipe.datasets.names import GOOD, composed
from spg_pipe.errors import SpgError, UnsuitableError, counted, listed
from spg_pipe.images.decoding import UnusableFileError
from spg_pipe.images.files import mask_files, read_file, sha256_of, utf8_name
from spg_pipe.images.notes import Seen, file_notes, peak_of
from spg_pipe.images.reading import Header, read_header, read_image, read_mask
from spg_pipe.images.samples import white_of
from spg_pipe.recipe.data import Dataset
from spg_pipe.recipe.machine import cpu_workers

Progress = Callable[[int, int], None]
_HASH_THREADS = 2
_DECODING_THREADS = 8
"""At most: each holds a whole decoded image."""
_TURNED = {
    True: "turns it by 90 degrees: draw the mask on the upright image, or remove the tag",
    False: "is ignored here: save the image upright, without the tag",
}
"""What an orientation does, by whether it is undone, and the remedy where the mask differs."""

Row = dict[str, object]  # of the manifest's table
Outcome = tuple[Row, Seen] | Skipped
"""What is known of an image and its files, or what is wrong with them."""


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

    Every file's bytes are hashed; pixels are read of 16-bit images, and where names alone
    do not tell masks, unless `skip_bad`.

    Parameters
    ----------
    exif_of_own_images
        Whether layout `folder` honours EXIF orientation (docs/method.md §5).
    skip_bad
        Decode every image and mask, and leave out, on record (`Manifest.skipped`), an image that
        cannot be used: damaged, or with a mask that is so or has another size.
    leave_out
        Images known to be bad, as if they were not there, while their files are the same.
    workers
        Threads that decode for `skip_bad`; default: one a core, at most 8.
    progress
        Called with (images done, images in all).

    Raises
    ------
    SpgError
        Unknown category; a file or folder that is missing or cannot be opened; without `skip_bad` a
        file that cannot be used, with it no other; memory is short.
    """
    root, (entries, notes, stated) = dataset.root, _wanted(dataset)
    bad = {image.path for image in leave_out if image.unchanged(root)}
    entries = [entry for entry in entries if entry.path not in bad]
    exif = honours_exif(dataset.layout, exif_of_own_images)
    workers = min(_DECODING_THREADS, cpu_workers(workers)) if skip_bad else _HASH_THREADS
    look = partial(_look_at, root, exif, skip_bad)
    outcomes = list(_in_threads(workers, look, entries, progress))
    used = [outcome for outcome in outcomes if not isinstance(outcome, Skipped)]
    skipped = tuple(outcome for outcome in outcomes if isinstance(outcome, Skipped))
    if not used or (skipped and not skip_bad):
        raise SpgError(_unusable(root, skipped, len(entries), skip_bad))
    seen = [files for _, files in used]
    peak = _peak(dataset, seen, exif)
    return Manifest(
        dataset=dataset.name,
        split=dataset.split,
        layout=dataset.layout,
        root=root,
        table=to_frame([row for row, _ in used]),
        licences=(f"{dataset.name}: {dataset.licence}",) if dataset.licence else stated,
        notes=(*notes, *file_notes(seen, peak), *skipped_notes(skipped)),
        exif=exif,
        white=white_of(peak),
        skipped=skipped,
        sources={entry.path: entry.source for entry in entries if entry.source},
    )


def _peak(dataset: Dataset, seen: Sequence[Seen], exif: bool) -> int:
    """`peak_of` the whole dataset, so that each of its splits and categories is read alike.

    Where no image that was seen has a peak, the others do not count, nor do unusable files.
    """
    peak, known = peak_of(seen), {one.path for one in seen}
    whole = dataset.model_copy(update={"split": "all", "categories": None})
    for entry in _wanted(whole)[0] if peak else ():
        if entry.path not in known:
            with suppress(UnusableFileError):
                file = dataset.root / entry.path
                peak = max(peak, read_header(file, "image", exif=exif).peak or 0)
    return peak


def list_images(dataset: Dataset) -> list[str]:
    """The relative paths that `build_manifest` would list, in its order, without hashing a file.

    Some files are decoded, where names alone do not tell masks. SpgError as of `build_manifest`.
    """
    return [entry.path for entry in _wanted(dataset)[0]]


def _wanted(dataset: Dataset) -> tuple[list[Entry], list[str], tuple[str, ...]]:
    """The images that are wanted, in order, with the scanners' notes and licences."""
    name, root, split = dataset.name, dataset.root, dataset.split
    layout, sets = LAYOUTS[dataset.layout], dataset.sets or ("",)
    for folder in [root / part for part in sets]:
        if not folder.is_dir():
            benchmark = BENCHMARKS.get(layout.name)
            get = f" {benchmark.name} comes from {benchmark.source}." if benchmark else ""
            raise SpgError(
                f"No folder for dataset {name} at {folder.absolute()}. The {layout.name} layout "
                f"expects there:\n{layout.sketch}\nUnpack the data there, or set the root of "
                f"{name} in params.yaml (under datasets) to where it is.{get}"
            )
    if split == "train" and not layout.splits:
        raise UnsuitableError(
            f"{root} has the {layout.name} layout, which knows no training split: use the split "
            f"`test` or `all` (both mean every image)."
        )
    parts = [_scan(dataset, layout, part) for part in sets]
    existing = [category for part in parts for category in part.categories]
    known = {composed(category) for category in existing}
    if unknown := [name for name in dataset.categories or () if composed(name) not in known]:
        close = [c for other in unknown for c in difflib.get_close_matches(other, existing, n=1)]
        hint = f" Did you mean {listed(close)}?" if close else ""
        raise SpgError(
            f"Dataset {name} in {root} has no category {listed(unknown)}.{hint} It has: "
            f"{', '.join(existing)}."
        )
    entries = sorted(
        (entry for part in parts for entry in part.entries),
        key=lambda entry: (entry.category, entry.defect != GOOD, entry.defect, entry.path),
    )
    if not entries:
        raise UnsuitableError(
            f"Dataset {name} in {root} has no images in its {split} split "
            f"({', '.join(existing)}). Choose another split, or complete the copy. Noticed: "
            f"{'; '.join(note for part in parts for note in part.notes)}."
        )
    _require_plain_names(name, entries)
    # A dict keeps the order and drops repetitions.
    licences = tuple(dict.fromkeys(part.licence for part in parts if part.entries))
    return entries, [note for part in parts for note in part.notes], licences


def _scan(dataset: Dataset, layout: Layout, part: str) -> Scan:
    """Scan the root, or one set of a union, and compare it with the benchmark that it may be.

    A set's name goes in front of everything.
    """
    name, root, prefix = part or dataset.name, dataset.root / part, f"{part}/" if part else ""

    def select(category: str) -> bool:
        asked = map(composed, dataset.categories or ())
        return dataset.categories is None or composed(prefix + category) in asked

    try:
        scan = layout.scan(root, dataset.split, select)
        wanted = [category for category in scan.categories if select(category)]
        licence, notes = recognised(dataset, name, root, scan, wanted)
    except OSError as error:
        raise SpgError(
            f"Dataset {name}: {error.filename or root} cannot be read ({error.strerror or error}). "
            f"Check its permissions and whether its disk is there."
        ) from error
    entries = []
    for entry in scan.entries:
        mask, category = entry.mask and prefix + entry.mask, prefix + entry.category
        entries.append(replace(entry, path=prefix + entry.path, mask=mask, category=category))
    notes = [f"{part}: {note}" if part else note for note in notes + scan.notes]
    return Scan(entries, [prefix + category for category in scan.categories], notes, licence)


def _require_plain_names(name: str, entries: Sequence[Entry]) -> None:
    """Each image once (a set or a line of a split file may repeat), and names that are text."""
    times = Counter(entry.path for entry in entries)
    if twice := [path for path, n in times.items() if n > 1]:
        raise SpgError(
            f"Dataset {name} names {counted(len(twice), 'image')} more than once: {listed(twice)}. "
            f"Remove the repeated set, or the repeated line of the split file."
        )
    for path in filter(None, (path for entry in entries for path in (entry.path, entry.mask))):
        if path != utf8_name(path):
            raise SpgError(
                f"Dataset {name}: this process takes the file name {utf8_name(path)!r} for "
                f"another, because its locale is not UTF-8. Run it again with PYTHONUTF8=1."
            )


def _unusable(root: Path, faults: Sequence[Skipped], total: int, skip_bad: bool) -> str:
    """One message tells all problems."""
    lines = "\n  ".join(first_of(faults))
    leave = "leave them out with --skip-bad (prepare, extract, synthesise), which also finds files"
    rest = ": no image is left" if skip_bad else f", or {leave} that are cut off"
    head = f"{counted(len(faults), 'image')} of {total} below {root} cannot be used"
    return f"{head}:\n  {lines}\nRepair or remove them{rest}."


def _in_threads(
    workers: int,
    look: Callable[[Entry], Outcome],
    entries: Sequence[Entry],
    progress: Progress | None,
) -> Iterator[Outcome]:
    """What `look` says of each entry, in order."""
    with ThreadPoolExecutor(workers) as pool:
        for done, outcome in enumerate(pool.map(look, entries), start=1):
            yield outcome
            if progress:
                progress(done, len(entries))


def _look_at(root: Path, exif: bool, decode: bool, entry: Entry) -> Outcome:
    """What is known of an image and its files, or what is wrong with them.

    `decode` image and mask as a whole: a header says nothing of a truncated file.
    """
    try:
        return _row(root, entry, exif, decode)
    except UnusableFileError as fault:
        return Skipped.of(root, entry.path, entry.mask, fault.reason)


def _row(root: Path, entry: Entry, exif: bool, decode: bool) -> tuple[Row, Seen]:
    """The row of an image whose files can be used, and what these say."""
    sha256, (image,) = _read(root, entry.path, entry.sha256, "", exif, decode)
    height, width = image.size
    row: Row = {n: getattr(entry, n) for n in ("path", "mask", "category", "defect", "label")}
    row |= {"mask_state": int(entry.mask_state), "height": height, "width": width}
    row |= {"sha256": sha256, "mask_sha256": ""}
    if not entry.mask:
        return row, Seen(entry.path, image)
    has = f"has a mask, {entry.mask}, that "
    row["mask_sha256"], masks = _read(root, entry.mask, entry.mask_sha256, has, exif, decode)
    for size in (mask.size for mask in masks if mask.size != image.size):
        turns = image.orientation >= 5 and size == (width, height)
        hint = f"; the image's EXIF orientation {_TURNED[image.turn > 1]}" if turns else ""
        # Width × height, as viewers show them.
        sizes = f"{width}×{height} pixels, but its mask {entry.mask} is {size[1]}×{size[0]}"
        raise UnusableFileError(f"The image {entry.path}", f"is {sizes}{hint}")
    return row, Seen(entry.path, image, entry.mask, tuple(masks))


def _read(
    root: Path, path: str, expected: str, has: str, exif: bool, decode: bool
) -> tuple[str, list[Header]]:
    """SHA-256 and header of an image, or of a mask's file or files if `has` leads over to one."""
    what, read = ("mask", read_mask) if has else ("image", read_image)
    name, headers, digests = f"The image of {path}", [], []
    for file in mask_files(root / path):
        content = read_file(file, what)
        try:
            headers.append(read_header(file, what, exif=exif, content=content))
            if decode:
                read(file, exif=exif, content=content)
        except UnusableFileError as fault:
            raise UnusableFileError(name, f"{has}{fault.reason}") from fault
        digests.append((file.name, hashlib.sha256(content).hexdigest()))
    if not headers:
        raise UnusableFileError(name, f"{has}is a folder without an image")
    sha256 = sha256_of(root / path, digests)
    if expected and sha256 != expected:
        raise UnusableFileError(
            name,
            f"{has}was changed since its set was written (SHA-256 {sha256[:8]}…, expected "
            f"{expected[:8]}…)",
        )
    return sha256, headers

"""Looking into an image's files: their hash and size, and whether they can be read at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from spg_pipe.datasets.images import read_image, read_mask, reason_of, stored_size
from spg_pipe.datasets.layouts.listing import Entry, source_id
from spg_pipe.datasets.skipped import Skipped
from spg_pipe.errors import SpgError
from spg_pipe.recipe.machine import cpu_workers

_HASH_THREADS = 2
_DECODING_THREADS = 8
"""At most: each holds a whole decoded image."""

Row = dict[str, object]
"""A row of the manifest's table: the keys of `manifest.COLUMNS`."""


def look_into(
    root: Path,
    entries: Sequence[Entry],
    exif: bool,
    decode: bool,
    leave_out: Sequence[Skipped],
    workers: int | None,
) -> Iterator[Row | Skipped]:
    """What is known of each entry and its files, or what is wrong with them, in order.

    Parameters
    ----------
    decode
        Decode every image and mask as a whole: a header says nothing of a truncated file.
    leave_out
        Images that are known to be bad: not looked into again while their files are the same.
    workers
        Threads for decoding; default: one a core, at most 8.
    """
    known = {bad.path: bad for bad in leave_out}

    def look(entry: Entry) -> Row | Skipped:
        bad = known.get(entry.path)
        if bad and bad.mask == entry.mask and bad.unchanged(root):
            return bad
        try:
            return _row(root, entry, exif, decode)
        except _UnusableError as fault:
            return Skipped.of(root, entry.path, entry.mask, str(fault))

    threads = min(_DECODING_THREADS, cpu_workers(workers)) if decode else _HASH_THREADS
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(look, entries)


def content_ids(paths: Iterable[Path]) -> set[str]:
    """`source_id` of files; those that cannot be read have none."""
    found = set()
    for path in paths:
        with suppress(OSError):
            found.add(source_id(hashlib.sha256(path.read_bytes()).hexdigest()))
    return found


class _UnusableError(Exception):
    """What is wrong with an image, as the end of a sentence that begins with its path."""


def _row(root: Path, entry: Entry, exif: bool, decode: bool) -> Row:
    """The row of an image whose files can be used."""
    sha256, size = _file(root, entry.path, entry.sha256, "", exif, decode)
    row: Row = {
        "path": entry.path,
        "mask": entry.mask,
        "mask_state": int(entry.mask_state),
        "category": entry.category,
        "defect": entry.defect,
        "label": entry.label,
        "height": size[0],
        "width": size[1],
        "sha256": sha256,
        "mask_sha256": "",
    }
    if entry.mask:
        has = f"has a mask, {entry.mask}, that "
        row["mask_sha256"], mask_size = _file(
            root, entry.mask, entry.mask_sha256, has, exif, decode
        )
        if mask_size != size:
            raise _UnusableError(_other_size(entry, size, mask_size, exif))
    return row


def _file(
    root: Path, path: str, expected: str, has: str, exif: bool, decode: bool
) -> tuple[str, tuple[int, int]]:
    """SHA-256 and (height, width) of an image, or of a mask if `has` leads over to one."""
    try:
        content = (root / path).read_bytes()
        size = stored_size(content, exif=exif)
        if decode:
            (read_mask if has else read_image)(root / path, exif=exif)
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        reason = _reason(error, root / path, path)
        raise _UnusableError(f"{has}cannot be read ({reason})") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if expected and sha256 != expected:
        raise _UnusableError(
            f"{has}was changed since its set was written (SHA-256 {sha256[:8]}…, expected "
            f"{expected[:8]}…)"
        )
    return sha256, size


def _reason(error: Exception, path: Path, shown: str) -> str:
    """What went wrong, without the place on this machine: it is recorded in artefacts."""
    cause = error.__cause__ if isinstance(error, SpgError) and error.__cause__ else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return reason_of(cause).replace(str(path), shown)


def _other_size(entry: Entry, image: tuple[int, int], mask: tuple[int, int], exif: bool) -> str:
    """Say both sizes (width × height, as viewers show them) and, if it helps, the likely cause."""
    (height, width), (mask_height, mask_width) = image, mask
    hint = ""
    if exif and mask == (width, height):
        hint = (
            "; the image's EXIF orientation turns it by 90 degrees: draw the mask on the upright "
            "image, or remove the tag"
        )
    return (
        f"is {width}×{height} pixels, but its mask {entry.mask} is {mask_width}×{mask_height}{hint}"
    )

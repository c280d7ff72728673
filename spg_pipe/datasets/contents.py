"""Looking into an image's files: their hash and size, and whether they can be read at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from spg_pipe.datasets.images import read_image, read_mask, stored_size
from spg_pipe.datasets.layouts.listing import Entry, source_id
from spg_pipe.datasets.skipped import Skipped
from spg_pipe.errors import SpgError
from spg_pipe.recipe.machine import cpu_workers

_HASH_THREADS = 2
_DECODING_THREADS = 8
"""At most: each holds a whole decoded image."""


class File(NamedTuple):
    """What is known of one file."""

    sha256: str
    size: tuple[int, int]
    """Height, width."""


class Files(NamedTuple):
    """An image and its mask."""

    image: File
    mask: File | None


def look_into(
    root: Path,
    entries: Sequence[Entry],
    *,
    exif: bool,
    decode: bool = False,
    leave_out: Sequence[Skipped] = (),
    workers: int | None = None,
) -> Iterator[tuple[Entry, Files | Skipped]]:
    """Each entry with what is known of its files, or with what is wrong with them, in order.

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

    def look(entry: Entry) -> Files | Skipped:
        bad = known.get(entry.path)
        if bad and bad.mask == entry.mask and bad.unchanged(root):
            return bad
        return _look(root, entry, exif, decode)

    threads = min(_DECODING_THREADS, cpu_workers(workers)) if decode else _HASH_THREADS
    pool = ThreadPoolExecutor(threads)
    try:
        yield from zip(entries, pool.map(look, entries), strict=True)
    finally:  # also when the caller stops early, by Ctrl-C for example
        pool.shutdown(cancel_futures=True)


def content_ids(paths: Iterable[Path]) -> set[str]:
    """`source_id` of files; those that cannot be read have none."""
    found = set()
    for path in paths:
        with suppress(OSError):
            found.add(source_id(hashlib.sha256(path.read_bytes()).hexdigest()))
    return found


def _look(root: Path, entry: Entry, exif: bool, decode: bool) -> Files | Skipped:
    files: list[File] = []
    for path in (entry.path, entry.mask) if entry.mask else (entry.path,):
        is_mask = bool(files)
        try:
            content = (root / path).read_bytes()
            size = stored_size(content, exif=exif)
            if decode:
                (read_mask if is_mask else read_image)(root / path, exif=exif)
        except Exception as error:  # Pillow's decoders raise a dozen unrelated types
            what = f"has a mask, {path}, that cannot be read" if is_mask else "cannot be read"
            reason = f"{what} ({_reason(error, root / path, path)})"
            return Skipped.of(root, entry.path, entry.mask, reason)
        sha256 = hashlib.sha256(content).hexdigest()
        expected = entry.mask_sha256 if is_mask else entry.sha256
        if expected and sha256 != expected:
            reason = _changed(path if is_mask else "", sha256, expected)
            return Skipped.of(root, entry.path, entry.mask, reason)
        files.append(File(sha256, size))
    found = Files(files[0], files[1] if entry.mask else None)
    if found.mask and found.mask.size != found.image.size:
        reason = _other_size(entry, found.image.size, found.mask.size, exif)
        return Skipped.of(root, entry.path, entry.mask, reason)
    return found


def _changed(mask: str, found: str, expected: str) -> str:
    what = f"has a mask, {mask}, that was changed" if mask else "was changed"
    return f"{what} since its set was written (SHA-256 {found[:8]}…, expected {expected[:8]}…)"


def _reason(error: Exception, path: Path, shown: str) -> str:
    """What went wrong, without the place on this machine: it is recorded in artefacts."""
    cause = error.__cause__ if isinstance(error, SpgError) and error.__cause__ else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    text = str(cause)
    if "cannot identify" in text:
        return "not an image that Pillow knows"
    return text.replace(str(path), shown) or type(cause).__name__


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

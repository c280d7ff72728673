"""Looking into an image's files: their hash and size, and whether they can be read at all."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from spg_pipe.datasets.images import read_image, read_mask, reason_of, stored_size
from spg_pipe.datasets.layouts.listing import Entry, source_id
from spg_pipe.datasets.manifest import Skipped
from spg_pipe.errors import SpgError
from spg_pipe.recipe.machine import cpu_workers

_HASH_THREADS = 2
_DECODING_THREADS = 8
"""At most: each holds a whole decoded image."""
_TURNED = (
    "; the image's EXIF orientation turns it by 90 degrees: draw the mask on the upright image, or "
    "remove the tag"
)

Row = dict[str, object]
"""A row of the manifest's table: the keys of `manifest.COLUMNS`."""


def look_into(
    root: Path, entries: Sequence[Entry], exif: bool, decode: bool, workers: int | None
) -> Iterator[Row | Skipped]:
    """What is known of each entry and its files, or what is wrong with them, in order.

    `decode` every image and mask as a whole: a header says nothing of a truncated file.
    """

    def look(entry: Entry) -> Row | Skipped:
        try:
            return _row(root, entry, exif, decode)
        except _UnusableError as fault:
            return Skipped.of(root, entry.path, entry.mask, str(fault))

    threads = min(_DECODING_THREADS, cpu_workers(workers)) if decode else _HASH_THREADS
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(look, entries)


def content_ids(paths: Iterable[Path]) -> set[str]:
    """`source_id` of files; those that cannot be read have none."""
    ids = set()
    for path in paths:
        with suppress(OSError):
            ids.add(source_id(hashlib.sha256(path.read_bytes()).hexdigest()))
    return ids


class _UnusableError(Exception):
    """What is wrong with an image, as the end of a sentence that begins with its path."""


def _row(root: Path, entry: Entry, exif: bool, decode: bool) -> Row:
    """The row of an image whose files can be used."""
    sha256, size = _file(root, entry.path, entry.sha256, "", exif, decode)
    height, width = size
    row: Row = {
        "path": entry.path,
        "mask": entry.mask,
        "mask_state": int(entry.mask_state),
        "category": entry.category,
        "defect": entry.defect,
        "label": entry.label,
        "height": height,
        "width": width,
        "sha256": sha256,
        "mask_sha256": "",
    }
    if entry.mask:
        has = f"has a mask, {entry.mask}, that "
        digest, mask_size = _file(root, entry.mask, entry.mask_sha256, has, exif, decode)
        row["mask_sha256"] = digest
        if mask_size != size:
            hint = _TURNED if exif and mask_size == (width, height) else ""
            # Width × height, as viewers show them.
            sizes = f"{width}×{height} pixels, but its mask {entry.mask} is "
            raise _UnusableError(f"is {sizes}{mask_size[1]}×{mask_size[0]}{hint}")
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
        cause = error.__cause__ if isinstance(error, SpgError) and error.__cause__ else error
        reason = cause.strerror if isinstance(cause, OSError) else None
        # Without the place on this machine: it is recorded in artefacts.
        reason = reason or reason_of(cause).replace(str(root / path), path)
        raise _UnusableError(f"{has}cannot be read ({reason})") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if expected and sha256 != expected:
        raise _UnusableError(
            f"{has}was changed since its set was written (SHA-256 {sha256[:8]}…, expected "
            f"{expected[:8]}…)"
        )
    return sha256, size

"""What the files of a set say when they are seen together: white of 16 bits, and notes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from spg_pipe.datasets.images import Header, read_header
from spg_pipe.datasets.layouts.listing import noted
from spg_pipe.datasets.samples import white_of
from spg_pipe.errors import counted, listed
from spg_pipe.recipe.machine import cpu_workers

_THREADS = 4
"""At most: each may hold a whole decoded image."""


@dataclass(frozen=True)
class Seen:
    """An image and its mask, as their headers describe them."""

    path: str
    """Of the image, for notes."""
    image: Header
    mask: str = ""
    masks: tuple[Header, ...] = ()
    """Of the mask's file, or the files of its folder; empty if there is no mask."""


def white_in(seen: Sequence[Seen]) -> int | None:
    """White of the images that do not say it (`read_image`), by the highest value of all."""
    return white_of(max((one.image.peak or 0 for one in seen), default=0))


def file_notes(seen: Sequence[Seen]) -> list[str]:
    """What a person should know of the files: a sentence each, none if all is well."""
    headers = [(one.path, one.image) for one in seen]
    paged = [f"{path} ({header.pages})" for path, header in headers if header.pages > 1]
    damaged = [path for path, header in headers if header.orientation == 0]
    toned = [path for path, header in headers if header.toned]
    stored = [path for path, header in headers if header.orientation > 1 and not header.turned]
    upright = [
        one.path for one in seen if one.image.turned and any(not mask.turned for mask in one.masks)
    ]
    lossy = [one.mask for one in seen if any(mask.lossy for mask in one.masks)]
    return [
        *noted(
            paged, "image", "with further pages or frames, of which only the first is looked at"
        ),
        *noted(damaged, "image", "with EXIF data that cannot be read, taken as upright"),
        *noted(toned, "image", "with a colour profile of other greys than sRGB's, converted to it"),
        *noted(
            stored,
            "image",
            "with an EXIF orientation that is ignored here, read as stored, so that masks drawn on "
            "the upright picture do not fit (save them upright, without the tag)",
        ),
        *noted(
            upright,
            "image",
            "turned by an EXIF orientation that the mask has not, which fits if the mask was drawn "
            "on the upright picture",
        ),
        *noted(
            lossy,
            "mask",
            "stored with loss, as in JPEG, whose noise counts as defect (every value above 0 "
            "does): use PNG",
        ),
        *_note_of_white(seen),
    ]


def _note_of_white(seen: Sequence[Seen]) -> list[str]:
    peaks = {one.path: one.image.peak for one in seen if one.image.peak is not None}
    if (white := white_in(seen)) is None:
        return []
    alone = "" if len(peaks) > 1 else ", by one image alone, which says little of its camera"
    return [
        f"{counted(len(peaks), '16-bit image')} whose files do not say which value is white, and "
        f"with values up to {max(peaks.values())}: {white} ({white.bit_length()} bits) is taken "
        f"for white{alone}; if that is wrong, save them with white at 65535: {listed([*peaks])}"
    ]


def look_at(files: Sequence[tuple[str, Path]], *, exif: bool) -> list[Seen]:
    """The headers of images, by their names for notes. SpgError for one that cannot be used."""
    with ThreadPoolExecutor(min(_THREADS, cpu_workers(None))) as pool:
        headers = pool.map(lambda file: read_header(file[1], "image", exif=exif), files)
        return [Seen(name, header) for (name, _), header in zip(files, headers, strict=True)]

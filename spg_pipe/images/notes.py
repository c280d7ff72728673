"""What the files of a set say when they are seen together: white of 16 bits, and notes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from spg_pipe.errors import SpgError, counted, listed, noted
from spg_pipe.images.reading import Header, read_header
from spg_pipe.images.samples import white_of

_THREADS = 4
"""Each may hold a whole decoded image."""


@dataclass(frozen=True)
class Seen:
    """An image and its mask, as their headers describe them."""

    path: str
    """Of the image, for notes."""
    image: Header
    mask: str = ""
    masks: tuple[Header, ...] = ()
    """Of the mask's file, or the files of its folder; empty if there is no mask."""


def peak_of(seen: Sequence[Seen]) -> int:
    """The highest value of the 16-bit images that do not say what is white; 0 without such."""
    return max((one.image.peak or 0 for one in seen), default=0)


def file_notes(seen: Sequence[Seen], peak: int) -> list[str]:
    """What a person should know of the files: a sentence each, none if all is well.

    `peak` is that of the whole set, which may be more than was seen.
    """
    images = [(one.path, one.image) for one in seen]
    kinds = {
        "with further pages or frames, of which only the first is looked at": [
            f"{path} ({image.pages})" for path, image in images if image.pages > 1
        ],
        "with EXIF data that cannot be read, taken as upright": [
            path for path, image in images if image.orientation == 0
        ],
        "with a colour profile of other greys than sRGB's, converted to it": [
            path for path, image in images if image.toned
        ],
        "with an EXIF orientation that is ignored here, so that a mask drawn on the upright "
        "picture does not fit (save them upright, without the tag)": [
            path for path, image in images if image.orientation > 1 and image.turn == 1
        ],
        "turned by EXIF otherwise than the mask, which fits if that was drawn on the picture as "
        "viewers show it": [
            one.path for one in seen if any(mask.turn != one.image.turn for mask in one.masks)
        ],
    }
    lossy = [one.mask for one in seen if any(mask.lossy for mask in one.masks)]
    noise = "stored with loss, as in JPEG, whose noise counts as defect (all above 0 does; use PNG)"
    of_images = [noted(paths, "image", what) for what, paths in kinds.items()]
    return [*chain(*of_images), *noted(lossy, "mask", noise), *_note_of_white(seen, peak)]


def _note_of_white(seen: Sequence[Seen], peak: int) -> list[str]:
    peaks = {one.path: one.image.peak for one in seen if one.image.peak is not None}
    if (white := white_of(peak)) is None:
        return []
    alone = "" if len(peaks) > 1 else " (but one image says little of its camera)"
    return [
        f"{counted(len(peaks), '16-bit image')} not saying which value is white: by the highest of "
        f"all, {peak}, it is {white}, of {white.bit_length()} bits{alone}; if that "
        f"is wrong, save them with white at 65535: {listed([*peaks])}"
    ]


def look_at(files: Sequence[tuple[str, Path]], *, exif: bool) -> list[Seen]:
    """The headers of images, by their names for notes; none of those that cannot be used."""

    def look(file: tuple[str, Path]) -> Seen | None:
        try:
            return Seen(file[0], read_header(file[1], "image", exif=exif))
        except SpgError:  # told when the image itself is read
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        return [seen for seen in pool.map(look, files) if seen is not None]

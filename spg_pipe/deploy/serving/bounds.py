"""What a server takes: bytes, pixels, seconds, images at once; and the refusal of what is more."""

from dataclasses import dataclass

from spg_pipe.errors import SpgError
from spg_pipe.images.decoding import TooManyPixelsError, UnusableFileError, picture_in

MILLION = 1_000_000


@dataclass(frozen=True)
class Bounds:
    """The limits of a server; each is an option of `serve`."""

    body_bytes: int = 50 * MILLION
    pixels: int = 50 * MILLION
    """Of an image, as its header or its shape says."""
    body_seconds: float = 10.0
    """For a request's body to arrive."""
    seconds: float = 30.0
    """From the head of a request to its answer."""
    images: int = 32
    """In hand at once: arriving, waiting or being judged."""


class RefusedError(SpgError):
    """A request that is answered with an error of HTTP."""

    def __init__(self, status: int, message: str, *, retry: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry is None else {"Retry-After": str(retry)}


class TooLongError(RefusedError):
    """A body of more bytes than are read."""

    def __init__(self, length: str, size: int, most: int) -> None:
        message = f"The body has {length}, and at most {most:,} bytes are read (--max-mb)."
        super().__init__(413, f"{message} Send a smaller image, or one that is compressed.")
        self.size = size


def require_few_pixels(pixels: int, bounds: Bounds) -> None:
    """A `RefusedError` for more pixels than `bounds.pixels`."""
    if pixels > bounds.pixels:
        raise RefusedError(
            413,
            f"The image has {pixels:,} pixels, and at most {bounds.pixels:,} are judged "
            "(--max-megapixels). Send a smaller one, or a part of it.",
        )


def check_header(content: bytes, bounds: Bounds) -> None:
    """A `RefusedError` for a file whose header claims too many pixels, before any is decoded.

    What is no image passes: to judge it says so, as `predict` does, and counts it.
    """
    try:
        width, height = picture_in(content, "", exif=False).stored_size
        require_few_pixels(height * width, bounds)
    except TooManyPixelsError as error:
        require_few_pixels(error.pixels, bounds)
    except UnusableFileError:
        return

"""Frames of a video file or a camera's stream, by PyAV (the extra `video`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from spg_pipe.errors import SpgError
from spg_pipe.predict.items import Item

if TYPE_CHECKING:
    from av.container import InputContainer

_ENDINGS = frozenset(
    [".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"]
)
_STREAMS = frozenset({"http", "https", "rtmp", "rtsp", "rtsps", "tcp", "udp"})


def is_video(source: str) -> bool:
    """Whether a source is a video file, by its ending, or a stream, by its address."""
    return is_stream(source) or Path(source).suffix.lower() in _ENDINGS


def is_stream(source: str) -> bool:
    """Whether a source is an address such as rtsp://camera/1."""
    return "://" in source and urlsplit(source).scheme.lower() in _STREAMS


def frames_of(source: str, every: int = 1) -> Iterator[Item]:
    """Every so many frames of a video, as they come: `NAME#000123`, counted from 0.

    The name is that of the file, or of a stream its host and path: no password. An `SpgError` if
    PyAV is missing, or the video cannot be opened or read on.
    """
    try:
        import av
    except ImportError:
        raise SpgError(
            f"{source} is a video, and the library that reads it is missing. Install the extra: "
            "pip install 'spg-pipe[video]'."
        ) from None
    address = urlsplit(source) if is_stream(source) else None
    name = f"{address.hostname}{address.path}" if address else Path(source).name
    try:
        with av.open(source) as container:
            yield from _frames(container, name, every)
    except av.error.FFmpegError as error:
        place = name if address else source
        advice = "Check the address and the camera" if address else "Check the file, or convert it"
        raise SpgError(f"The video {place} cannot be read ({error.strerror}). {advice}.") from error


def _frames(container: "InputContainer", name: str, every: int) -> Iterator[Item]:
    if not container.streams.video:
        raise SpgError(f"{name} has no pictures. Give a video.")
    for number, frame in enumerate(container.decode(video=0)):
        if number % every == 0:
            yield Item(f"{name}#{number:06d}", frame.to_ndarray(format="rgb24"))

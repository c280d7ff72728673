"""Reading what anybody may have written: regular files alone, and one message for whatever fails.

A failure that passes (no permission, no file handles, a disk's error) is told from damage, which
alone is mended by making the artefact again.
"""

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from pydantic_core import from_json

from spg_pipe.errors import LESS_MEMORY, DamagedError, NotThereError, SpgError, printable, told

MOST_BYTES = 128 * 1024**2
"""Of a JSON file: what a million images need. More would take gigabytes of memory."""
_LONGEST = 200


def read_file(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file, at most so many; ValueError for a pipe, of which a read may
    never end, for a folder, a device, and a larger file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a folder, a pipe or a device, not a file: move it away")
    if most is not None and status.st_size > most:
        raise ValueError(f"it has {status.st_size:,} bytes, expected at most {most:,}")
    return path.read_bytes()


def read_json(content: bytes | str) -> object:
    """The value of a JSON text; ValueError for any other, for NaN, and for hundreds of levels."""
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"it is not valid JSON ({error})") from error


@contextmanager
def reading(path: Path | str, what: str, command: str) -> Iterator[None]:
    """Turn whatever the block raises while it reads a file or URL into one message.

    Raises
    ------
    NotThereError, SpgError
        If there is no such file; or it cannot be read at present.
    DamagedError
        For everything else: its content is not what was written. The message names the artefact in
        words (`what`: "detector") and the `command` that makes it.
    """
    try:
        yield
    except SpgError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and error.errno is not None:
            raise NotThereError(
                f"{path} does not exist. Expected: the {what}. Check the path, or make it with "
                f"`{command}`.",
                command=command,
            ) from error
        if passes(error):
            raise unreadable(path, error) from error
        raise damaged(path, what, in_words(error), command) from error


def passes(error: Exception) -> bool:
    """Whether the system failed, not the file: the same reading may succeed another time."""
    if isinstance(error, OSError):
        return error.errno is not None or isinstance(error, TimeoutError)
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


def unreadable(path: Path | str, error: Exception, to: str = "read", advice: str = "") -> SpgError:
    """The error of what may be well but cannot be `read`, or `written`, at present."""
    # Before it is cut: a long address would leave no room for the status.
    cause = shown(re.sub(r"https?://\S+", "…", str(error)).strip() or type(error).__name__)
    if isinstance(error, MemoryError):
        cause += f". {LESS_MEMORY}"
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.errno:
        cause = told(OSError(error.errno, cause))
    if advice:
        cause = f"{cause.removesuffix('.')}. {advice}"
    return SpgError(f"{path} cannot be {to}: {cause}")


def damaged(path: Path | str, what: str, fault: str, command: str) -> DamagedError:
    """The error of an artefact's file that is there but is not what was written."""
    again = made_anew(path, f"run `{command}` again with the same options")
    return DamagedError(f"{path} is not a whole {what}: {fault}. Copy it again, or {again}.")


def made_anew(path: Path | str, here: str) -> str:
    """What to do with a damaged artefact: `here` if it lies on this machine's disks; behind a URL
    nothing is replaced."""
    if "://" not in str(path):
        return here
    return "remove the store with the tool of its file system and make it anew"


def in_words(error: Exception) -> str:
    """What an error says, in one line that a terminal can show."""
    if isinstance(error, UnpicklingError):
        return "it is damaged, or holds Python objects besides tensors"
    text = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return shown(text.strip() or type(error).__name__)


def shown(text: object) -> str:
    """The first line of what a file says, as a message may show it."""
    return printable((str(text).splitlines() or [""])[0])[:_LONGEST]

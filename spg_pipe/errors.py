"""The exceptions that a user sees, and the wording that their messages share."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LESS_MEMORY = (
    "Close other programs, or lower what is held at once: extract.batch_images or "
    "sae.batch_images, --workers, the sides of --tiles, the size of the images."
)
_ELSE = "or choose another place."
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"Make room there, {_ELSE}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), f"Check its owner and permissions, {_ELSE}"),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR), f"A file is in a folder's way: move it, {_ELSE}"
    ),
    errno.ENOENT: "Check the path.",
    errno.ENAMETOOLONG: "Shorten the name.",
    errno.EFBIG: "Raise the limit on a file's size (`ulimit -f unlimited`).",
    errno.EMFILE: "Raise the limit on open files (`ulimit -n 4096`).",
    errno.ENOMEM: LESS_MEMORY,
}
"""Error numbers of the system → what to do."""
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_OBEYED = re.compile(f"[{_CONTROLS}\ud800-\udfff\ufffe\uffff]")
"""Controls but tab and newline, marks of direction, bytes that are no UTF-8, what XML lacks."""


class SpgError(Exception):
    """A failure that a person can act on.

    The message names the thing, what was found, what was expected and what to do next. The
    command line prints it and exits with 1; a traceback is a bug.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does."""


class UsageError(SpgError):
    """An option that cannot be read: the command line exits with 2."""


class NotThereError(SpgError):
    """Nothing that fits has been made yet, as opposed to something damaged or ambiguous.

    `command` is the first one to run.
    """

    def __init__(self, message: str, *, command: str) -> None:
        super().__init__(message)
        self.command = command


class DamagedError(SpgError):
    """An artefact is there but is not what was written: making it again mends it."""


class UnsuitableError(SpgError):
    """The data are well but do not serve this purpose: no train split, too few normal images.

    Where the purpose is one of several it may be left out, with a note.
    """


def told(error: OSError, place: Path | str | None = None) -> str:
    """What an error of the system says to a person: the cause, the place, what to do next.

    `place` is named instead of the error's own file.
    """
    if error.errno is None or error.errno not in errno.errorcode:  # a library's own words
        return str(error)
    where = f": {place or error.filename}" if place or error.filename else ""
    advice = _REMEDIES.get(error.errno, f"Check the disk, {_ELSE}")
    return f"{os.strerror(error.errno)}{where}. {advice}"


@contextmanager
def naming(path: Path, temporary: Path) -> Iterator[None]:
    """Have an error of the system name `path`, which the block makes under a temporary name.

    Such an error may name the temporary file or, as on a full disk, none. Another name stays.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if error.errno is not None and (named is None or temporary.name in str(named)):
            error.filename, error.filename2 = str(path), None
        raise


def printable(text: str) -> str:
    r"""Text from anywhere, with what a terminal obeys or XML lacks written out, as `\x1b`."""

    def written_out(character: re.Match[str]) -> str:
        code = ord(character[0])
        # 0xdcNN is how Python holds the byte NN of a name that is not UTF-8.
        known = chr(code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code)
        return known.encode("unicode_escape").decode()

    return _OBEYED.sub(written_out, text)


def one_line(text: str) -> str:
    """With a line's end in a name or a licence written out: no file can forge another line."""
    return text.replace("\n", "\\n")


def listed(items: Sequence[str], limit: int = 5) -> str:
    """The first few items and how many more there are, for messages."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return one_line(", ".join(items[:limit])) + more


def counted(number: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def noted(items: Sequence[str | Path], noun: str, what: str, root: Path = Path()) -> list[str]:
    """The note `2 masks without a use: a, b`, of paths as from `root`; none of nothing."""
    names = [i if isinstance(i, str) else i.relative_to(root).as_posix() for i in items]
    note = f"{counted(len(names), noun)} {what}: {listed(names)}"
    return [one_line(printable(note))] if names else []

"""The exceptions that a user sees, and the wording that their messages share."""

from collections.abc import Sequence


class SpgError(Exception):
    """A failure that a person can act on.

    The message names the thing, what was found, what was expected and what to do next. The
    command line prints it and exits with 1; a traceback is a bug.
    """


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


def listed(items: Sequence[str], limit: int = 5) -> str:
    """The first few items and how many more there are, for messages."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

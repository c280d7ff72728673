"""The exceptions that a user sees."""


class SpgError(Exception):
    """A failure that a person can act on.

    The message names the thing, what was found, what was expected and what to do next. The
    command line prints it and exits with 1; a traceback is a bug.
    """


class NotThereError(SpgError):
    """Nothing that fits has been made yet, as opposed to something damaged or ambiguous."""


class DamagedError(SpgError):
    """An artefact is there but is not what was written: making it again mends it."""

"""Where a store lies: in a folder of this machine, or behind a URL."""

import re
from pathlib import Path

from spg_pipe.errors import SpgError

Place = Path | str
"""A folder, or a URL (`s3://bucket/x.zarr`)."""


def place_of(text: str) -> Place:
    """What an option or a recipe names; an `SpgError` for an address that holds a secret, and for
    one that is none."""
    refuse_secrets(text)
    scheme, colon, rest = text.partition("://")
    if not text.strip():
        raise SpgError("The name of a place is empty: expected a folder or a URL (s3://bucket/x).")
    if found := re.fullmatch("(?is)file:(?://(?!/)|(?=/(?!/)))(.*)", text):
        raise SpgError(
            f"{text} names no folder: expected {found[1] or 'a folder'}, or file:///folder."
        )
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/[^/]", text):
        raise SpgError(
            f"{text} has one slash where an address has two (s3://bucket/x). Write it so; or "
            f"./{text} for a folder of that name."
        )
    if not colon or not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
        return Path(text)
    if scheme.lower() == "file":
        return Path(rest)
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def from_root(place: Place) -> Place:
    """The same place for a process in another folder; links are followed."""
    return place.resolve() if isinstance(place, Path) else place


def refuse_secrets(place: str) -> None:
    """Refuse, with an `SpgError`, an address with a password or a signed query: it would stand in
    messages, artefacts and the shell's history."""
    hidden = re.sub(r"(://[^/?#]*):[^/?#]*@", r"\1:…@", place)
    hidden = re.sub(r"(?i)^(https?://)[^/?#]*@", r"\1…@", hidden)  # a token may be the name
    if "://" in place:
        hidden = re.sub(r"\?.*", "?…", hidden, flags=re.DOTALL)
    if hidden != place:
        raise SpgError(
            f"{hidden} holds a password or a query. Name the store without, and leave credentials "
            "to its file system: environment variables such as AWS_ACCESS_KEY_ID, its own files, "
            "or fsspec's (docs/scale.md, “Remote stores”)."
        )

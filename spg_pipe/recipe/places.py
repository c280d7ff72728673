"""Where a store lies: in a folder of this machine, or behind a URL."""

import os
import re
from pathlib import Path

from spg_pipe.errors import SpgError

Place = Path | str
"""A folder, or a URL (`s3://bucket/x.zarr`)."""
_SERVER = re.compile(r"(https?)://(?:[\w.-]+|\[[0-9a-fA-F:.]+])(?::([0-9]{1,5}))?(?:/\S*)?")
"""Of S3: its scheme and its port."""


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


def require_server(place: str) -> str:
    """The same address. An `SpgError` if the environment names a server or a region of S3 for it
    that is none, of which obstore would panic, or a server without TLS, which it would not ask."""
    if not place.startswith("s3:"):
        return place
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if not re.fullmatch("[A-Za-z0-9-]*", os.environ.get(name, "")):
            raise SpgError(f"{name} is no region: expected one such as us-east-1.")
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        server = _SERVER.fullmatch(os.environ.get(name, "https://none"))
        if server is None or int(server[2] or 0) >= 2**16:  # not shown: it may hold a password
            raise SpgError(
                f"{name} is no address of a server: expected one such as https://host or "
                "http://127.0.0.1:9000, without blanks."
            )
        allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "on", "yes", "y")
        if server[1] == "http" and not allowed:
            raise SpgError(f"{name} names a server without TLS. Set AWS_ALLOW_HTTP=true as well.")
    return place


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

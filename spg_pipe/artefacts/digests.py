"""Whether an artefact's folder still is what was written: its config, and its files by digest.

Zarr reads a flipped byte as another number and a lost chunk as NaN, and a config that was edited by
hand reads as well as any: neither may become a result.
"""

import hashlib
from pathlib import Path
from typing import Any

from spg_pipe.artefacts.files import fingerprint, read_json
from spg_pipe.errors import DamagedError, SpgError

FILES = "files_sha256"
"""Key of a config: relative path → SHA-256 of every file that is checked."""
_BESIDE = ("fingerprint", "versions", "tensors_sha256", FILES)
"""What stands in a config beside the content that its fingerprint is of."""


def file_digests(folder: Path, *names: str) -> dict[str, str]:
    """Relative path → SHA-256 of some files of a folder; of a folder in it, all files below."""
    places = [folder / name for name in names]
    files = [f for place in places for f in ([place] if place.is_file() else place.rglob("*"))]
    return {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(files)
        if path.is_file()
    }


def require_files(folder: Path, config: dict[str, Any], what: str, again: str) -> None:
    """Hold files against the digests in a config.

    Parameters
    ----------
    what, again : str
        For the error: the artefact's noun, and the command that makes it again.

    Raises
    ------
    DamagedError
        If a file is missing or holds other bytes, or there are no digests (an older version).
    """
    expected = config.get(FILES)
    if not isinstance(expected, dict) or not expected:
        raise _not_whole(folder, what, f"its config.json has no {FILES} (older version)", again)
    for name, sha256 in expected.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            fault = f"{name} cannot be read ({error.strerror})"
            raise _not_whole(folder, what, fault, again) from error
        if found != sha256:
            fault = f"{name} is damaged (SHA-256 {found[:8]}…, expected {str(sha256)[:8]}…)"
            raise _not_whole(folder, what, fault, again)


def read_config(folder: Path, kind: str, again: str) -> dict[str, Any]:
    """An artefact's config.json, held against its kind and its fingerprint.

    Raises
    ------
    SpgError
        If it is missing, damaged or changed, or of another kind of artefact.
    """
    config = read_json(folder / "config.json", kind.capitalize())
    found = config.get("kind")
    if found != kind and isinstance(found, str):
        raise SpgError(f"{folder} holds: {found}. Expected: {kind}. Name another folder.")
    require_fingerprint(folder, config, kind, again)
    return config


def require_fingerprint(folder: Path, config: dict[str, Any], what: str, again: str) -> None:
    """Hold a config against the fingerprint in it.

    Raises
    ------
    DamagedError
        If anything that determined the artefact reads otherwise than when it was written.
    """
    content = {key: value for key, value in config.items() if key not in _BESIDE}
    if config.get("fingerprint") != fingerprint(content):
        fault = "its config.json does not give its fingerprint, so it was changed or damaged"
        raise _not_whole(folder, what, fault, again)


def _not_whole(folder: Path, what: str, fault: str, again: str) -> DamagedError:
    return DamagedError(
        f"{folder} is not a whole {what}: {fault}. Copy it again, or run `{again}` again."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

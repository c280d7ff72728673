"""The place where a store is to be written: locked for one writer, emptied only of a store."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError, listed
from spg_pipe.store.format import DAMAGED_METADATA, StoreSpec, is_damaged_store, read_attributes

if TYPE_CHECKING:
    from filelock import FileLock


def writer_lock(path: Path) -> "FileLock":
    """The operating system's lock on a store's place: `.<store>.lock` beside it.

    It ends with its process, however that dies. The empty file stays: removing a locked file would
    let two processes lock two files of the same name.
    """
    from filelock import FileLock

    return FileLock(path.with_name(f".{path.name}.lock"))


def acquire(lock: "FileLock", path: Path) -> None:
    """Take the lock on a store's place at once; SpgError if another process holds it."""
    from filelock import Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise SpgError(
            f"Another process is writing {path}. Wait for it to end, stop it, or write "
            "to another place with --out."
        ) from error


def refuse_what_is_no_store(path: Path) -> None:
    """Raise SpgError if something else than a store is in the place."""
    there = read_attributes(path) or {}
    if {"schema", "fingerprint"} <= set(there) or is_damaged_store(path):
        return
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise SpgError(
            f"{path} exists and is not a feature store. Choose another place or remove it."
        )


def make_room(path: Path, spec: StoreSpec, manifest: Manifest, *, replace: bool) -> None:
    """Remove a store from its place; SpgError if it is none, or not to be replaced."""
    there = read_attributes(path)
    refuse_what_is_no_store(path)
    if is_damaged_store(path) and not replace:
        raise SpgError(f"{path} is a store, but {DAMAGED_METADATA}")
    if there and not replace:
        here = set(manifest.table["path"])
        repaired = [bad["path"] for bad in there.get("skipped") or () if bad["path"] in here]
        more = f"; it left out what is no longer left out: {listed(repaired)}"
        raise SpgError(
            f"{path} holds a store of other content ({_differences(there, spec)}"
            f"{more if repaired else ''}). Use --replace to write it anew, or choose another "
            "place."
        )
    shutil.rmtree(path)


def _differences(there: Mapping[str, Any], spec: StoreSpec) -> str:
    """In what the attributes of another store differ from those that are wanted, in words."""
    wanted = {k: v for k, v in spec.attributes().items() if k not in spec.BESIDE}
    names = [name for name in wanted if there.get(name) != wanted[name]]
    words = [_difference(name, there.get(name), wanted[name]) for name in names]
    return "; ".join(words) or "another fingerprint"


def _difference(name: str, there: Any, wanted: Any) -> str:
    if name == "manifest":
        return "its images, masks or labels are others"
    if not isinstance(wanted, dict) or not isinstance(there, dict):
        return f"{name}: found {there!r}, expected {wanted!r}"
    inner = [key for key in {**wanted, **there} if there.get(key) != wanted.get(key)]
    return f"{name} differs ({', '.join(inner)})"

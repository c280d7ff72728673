"""A store's folder, on this machine or behind a URL."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from spg_pipe.store.format import SHARD_INDEX


class StoreFiles:
    """The files of a store by their names below it.

    Parameters
    ----------
    place : Path or str
        A folder, or any URL that fsspec knows (`s3://…`, `https://…`, `memory://…`).
    """

    def __init__(self, place: Path | str) -> None:
        self._fs, self._root = url_to_fs(str(place))
        plain = Path(place) if "://" not in str(place) else Path(self._root)
        self.local = plain if isinstance(self._fs, LocalFileSystem) else None
        """The folder, or None for a store elsewhere."""
        self.place = self.local if self.local is not None else str(place)

    def read(self, name: str) -> bytes:
        """A file's bytes; raises OSError where there is none."""
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def size(self, name: str) -> int | None:
        """A file's size in bytes, None where there is no such file."""
        try:
            found = self._fs.info(f"{self._root}/{name}")
        except OSError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def attributes(self) -> Mapping[str, Any] | None:
        """The group's attributes, or None where there is no readable group."""
        attributes = self.metadata().get("attributes")
        return attributes if isinstance(attributes, dict) else None

    def metadata(self, name: str = "zarr.json") -> Mapping[str, Any]:
        """What a zarr.json says, of the group or of an array; empty where it cannot be read."""
        try:
            content = json.loads(self.read(name))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def group(self) -> Any:
        """The store as a Zarr group, for reading."""
        if self.local is not None:
            return zarr.open_group(self.local, mode="r")
        store = zarr.storage.FsspecStore.from_url(str(self.place), read_only=True)
        return zarr.open_group(store, mode="r")


def read_attributes(root: Path) -> Mapping[str, Any] | None:
    """The attributes of a local group, or None where there is no readable one."""
    return StoreFiles(root).attributes()


def is_damaged_store(root: Path) -> bool:
    """Whether a folder holds a store's data without its metadata."""
    has_data = (root / SHARD_INDEX).is_file() and any(root.glob("tokens_*"))
    return has_data and read_attributes(root) is None

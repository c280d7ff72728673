"""Two readers of one layer's tokens that give the same bits: positional, and zarr-python."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spg_pipe.artefacts.reading import unreadable
from spg_pipe.errors import SpgError
from spg_pipe.store.files import read_attributes
from spg_pipe.store.format import REMAKE, StoreSpec
from spg_pipe.store.shards import chunk_file

READ_THREADS = 4
"""Reads under way at once: enough for a disk's queue, harmless where the page cache answers."""
_PIECE_BYTES = 4 * 1024**2
"""Smaller requests are not worth a thread of their own."""


class Unchanged:
    """Refuses a local store that was replaced since it was opened."""

    def __init__(self, root: Path | None, fingerprint: str) -> None:
        self._root, self._fingerprint = root, fingerprint
        self._stamp: tuple[int, int] | None = None

    def require(self) -> None:
        """Check what was read before this call; only a file that changed is read again."""
        if self._root is None:  # a store elsewhere
            return
        try:
            status = (self._root / "zarr.json").stat()
            stamp = (status.st_ino, status.st_mtime_ns)
        except OSError:
            stamp = (0, 0)
        if stamp == self._stamp:
            return
        attributes = read_attributes(self._root) or {}
        if attributes.get("fingerprint") != self._fingerprint or not attributes.get("complete"):
            raise SpgError(
                f"{self._root} was replaced, or is being replaced, since it was opened. Open it "
                "again, or run the command again, to read what is there now."
            )
        self._stamp = stamp


def read_plain(array: Any, images: np.ndarray, out: np.ndarray) -> None:
    """Read tokens of one layer as Zarr gives them, whatever the codec and wherever they lie.

    For compressed and for remote stores, and the reference that `RawTokens.read` is held to.
    """
    start = 0
    # Zarr reads a slice of neighbours at once; its fancy indexing is 10 times slower.
    for run in np.split(images, np.flatnonzero(np.diff(images) != 1) + 1):
        out[start : start + len(run)] = array[int(run[0]) : int(run[-1]) + 1]
        start += len(run)


class RawTokens:
    """The token shards of one layer in a local, uncompressed store; an array that Dask slices.

    Reading an image is one `preadv` into the destination (docs/store.md, "Files"): no copy in
    Python, and threads read at the same time.
    """

    def __init__(self, root: Path, spec: StoreSpec, layer: str) -> None:
        self._root, self._spec, self._layer = root, spec, layer
        self._shard_images, self._image_bytes = spec.shard_images, spec.image_bytes(layer)
        self._unchanged = Unchanged(root, spec.fingerprint)
        self._files: dict[int, int] = {}
        shape = spec.layers[layer]
        self.shape, self.ndim = (spec.images, shape.patches, shape.dim), 3
        self.dtype = np.dtype(spec.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process opens the files itself: descriptors mean nothing there.
        return RawTokens, (self._root, self._spec, self._layer)

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        first, *rest = key
        rows = np.arange(self.shape[0])[first]
        images = np.atleast_1d(rows)
        out = np.empty((len(images), *self.shape[1:]), self.dtype)
        if len(images):
            self.read(images, out)
        return out[:, *rest] if rows.ndim else out[0][*rest]

    def read(self, images: np.ndarray, out: np.ndarray) -> None:
        """Read patch tokens of some images.

        Parameters
        ----------
        images : (n,) int
            Image rows, in any order.
        out : (n, N, D)
            In the store's dtype; each image's part must be contiguous.

        Raises
        ------
        SpgError
            If a shard cannot be read, or the store was replaced.
        """
        pieces = self._pieces(images, packed=out.flags.c_contiguous)
        if len(pieces) == 1 or len(images) * self._image_bytes <= _PIECE_BYTES:
            self._read_pieces(pieces, out)
        else:
            parts = [pieces[i::READ_THREADS] for i in range(READ_THREADS)]
            # `list` waits, and raises what a thread raised.
            list(self._pool.map(lambda part: self._read_pieces(part, out), parts))
        self._unchanged.require()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READ_THREADS, thread_name_prefix="spg-read")

    def _pieces(self, images: np.ndarray, *, packed: bool) -> list[tuple[int, int, int, int]]:
        """(shard, place in it, first row of `out`, images): neighbours become one read."""
        limit = max(1, _PIECE_BYTES // self._image_bytes) if packed else 1
        pieces: list[tuple[int, int, int, int]] = []
        for row, image in enumerate(images.tolist()):
            shard, place = divmod(image, self._shard_images)
            if pieces:
                last_shard, last_place, first, count = pieces[-1]
                if (last_shard, last_place + count) == (shard, place) and count < limit:
                    pieces[-1] = (shard, last_place, first, count + 1)
                    continue
            pieces.append((shard, place, row, 1))
        return pieces

    def _read_pieces(self, pieces: Sequence[tuple[int, int, int, int]], out: np.ndarray) -> None:
        for shard, place, row, count in pieces:
            target = out[row : row + count]
            view = target.reshape(-1).view(np.uint8).data  # no copy: the part is contiguous
            offset, done = place * self._image_bytes, 0
            while done < len(view):
                try:
                    got = os.preadv(self._file(shard), [view[done:]], offset + done)
                except FileNotFoundError as error:
                    raise self._fault(shard, f"cannot be read ({error})") from error
                except OSError as error:
                    raise unreadable(self._path(shard), error) from error
                if got == 0:
                    end, expected = offset + done, offset + len(view)
                    raise self._fault(shard, f"ends at byte {end}, expected at least {expected}")
                done += got

    def _fault(self, shard: int, what: str) -> SpgError:
        self._unchanged.require()  # a replaced store explains any fault
        return SpgError(
            f"{self._path(shard)} {what}. Check the disk, and the store with `spg-pipe verify`; "
            f"make it again with {REMAKE}."
        )

    def _path(self, shard: int) -> Path:
        return self._root / chunk_file(f"tokens_{self._layer}", shard)

    def _file(self, shard: int) -> int:
        descriptor = self._files.get(shard)
        if descriptor is None:
            # Two threads may open the same shard; `setdefault` keeps one, the other is closed.
            opened = os.open(self._path(shard), os.O_RDONLY)
            descriptor = self._files.setdefault(shard, opened)
            if descriptor != opened:
                os.close(opened)
        return descriptor

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

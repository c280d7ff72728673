"""Readers of one layer's tokens that give the same bits: at offsets, here or elsewhere, and through
zarr-python."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spg_pipe.artefacts.reading import damaged, reading, unreadable
from spg_pipe.errors import DamagedError, SpgError
from spg_pipe.store.cache import REQUEST_BYTES
from spg_pipe.store.files import StoreFiles, read_attributes
from spg_pipe.store.format import COMMAND, StoreSpec, remade
from spg_pipe.store.shards import ShardEntry, chunk_file, crc32c

READ_THREADS = 4
"""Reads under way at once: enough for a disk's queue, harmless where the page cache answers."""
PIECE_BYTES = 4 * 1024**2
"""Largest read; all together smaller, they are not worth threads of their own."""


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


class Checksums:
    """Holds an image's tokens against their crc32c the first time that they are read.

    `expected` (n,) uint32: of each image of the store, as it says itself.
    """

    def __init__(self, expected: np.ndarray) -> None:
        self.expected = expected
        self._intact = np.zeros(len(expected), bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return Checksums, (self.expected,)  # another process looks for itself

    def damaged(self, images: np.ndarray, tokens: np.ndarray) -> int | None:
        """The first of some images (k,) whose tokens (k, N, D) are not what was written."""
        for place in np.flatnonzero(~self._intact[images]):
            if crc32c(tokens[place]) != self.expected[images[place]]:
                return int(images[place])
        self._intact[images] = True
        return None


class TokenArray(ABC):
    """The patch tokens of one layer, (n, N, D): an array that reads what is sliced of it."""

    def __init__(self, spec: StoreSpec, layer: str, checksums: Checksums) -> None:
        shape = spec.layers[layer]
        self.shape, self.ndim = (spec.images, shape.patches, shape.dim), 3
        self.dtype = np.dtype(spec.dtype)
        self._spec, self._layer, self._checksums = spec, layer, checksums

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        first, *rest = key
        rows = np.arange(self.shape[0])[first]
        images = np.atleast_1d(rows)
        out = np.empty((len(images), *self.shape[1:]), self.dtype)
        if len(images):
            self.read(images, out)
        return out[:, *rest] if rows.ndim else out[0][*rest]

    @abstractmethod
    def read(self, images: np.ndarray, out: np.ndarray) -> None:
        """Read patch tokens of some images.

        An `SpgError` if they cannot be read or are damaged, or the store was replaced.

        Parameters
        ----------
        images : (k,) int
            Image rows, in any order.
        out : (k, N, D)
            In the store's dtype; each image's part must be contiguous.
        """

    def _require_intact(self, images: np.ndarray, tokens: np.ndarray, place: Path | str) -> None:
        """Refuse tokens (k, N, D) that are not what was written into a file."""
        if (image := self._checksums.damaged(images, tokens)) is not None:
            fault = f"the tokens of image {image} do not give their crc32c"
            raise damaged(place, "store", fault, COMMAND)


class PlainTokens(TokenArray):
    """Tokens as Zarr gives them, whatever the codec and wherever they lie.

    For compressed stores, and the reference that `RawTokens` is held to.
    """

    def __init__(self, array: Any, spec: StoreSpec, layer: str, checksums: Checksums) -> None:
        super().__init__(spec, layer, checksums)
        self._array = array

    def read(self, images: np.ndarray, out: np.ndarray) -> None:
        """See `TokenArray`."""
        start = 0
        # Zarr reads a slice of neighbours at once; its fancy indexing is 10 times slower.
        for run in np.split(images, np.flatnonzero(np.diff(images) != 1) + 1):
            tokens, source = out[start : start + len(run)], f"{self._array.store_path}"
            with reading(source, "store", COMMAND):
                tokens[...] = self._array[int(run[0]) : int(run[-1]) + 1]
            self._require_intact(run, tokens, source)
            start += len(run)


class RawTokens(TokenArray):
    """The token shards of one layer in a local, uncompressed store.

    Reading an image is one `preadv` into the destination (docs/store.md, "Files"): no copy in
    Python, and threads read at the same time.
    """

    _threads, _alone_bytes = READ_THREADS, PIECE_BYTES
    _piece_bytes = PIECE_BYTES, PIECE_BYTES  # a piece's least and most

    def __init__(self, root: Path, spec: StoreSpec, layer: str, checksums: Checksums) -> None:
        super().__init__(spec, layer, checksums)
        self._root = root
        self._shard_images, self._image_bytes = spec.shard_images, spec.image_bytes(layer)
        self._unchanged = Unchanged(root, spec.fingerprint)
        self._files: dict[int, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process opens the files itself: descriptors mean nothing there.
        return RawTokens, (self._root, self._spec, self._layer, self._checksums)

    def read(self, images: np.ndarray, out: np.ndarray) -> None:
        """See `TokenArray`."""
        pieces = self._pieces(images, packed=out.flags.c_contiguous)
        if len(pieces) == 1 or len(images) * self._image_bytes <= self._alone_bytes:
            self._read_pieces(pieces, out)
        else:
            parts = [pieces[i :: self._threads] for i in range(self._threads)]
            # `list` waits, and raises what a thread raised.
            list(self._pool.map(lambda part: self._read_pieces(part, out), parts))
        self._unchanged.require()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="spg-read")

    def _pieces(self, images: np.ndarray, *, packed: bool) -> list[tuple[int, int, int, int]]:
        """(shard, place in it, first row of `out`, images): neighbours become one read, at
        most a thread's share within `_piece_bytes`."""
        share, (least, most) = len(images) * self._image_bytes // self._threads, self._piece_bytes
        limit = max(1, min(max(share, least), most) // self._image_bytes) if packed else 1
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
            self._fill(shard, place * self._image_bytes, view)
            images = np.arange(count) + shard * self._shard_images + place
            try:
                self._require_intact(images, target, self._path(shard))
            except SpgError:
                self._unchanged.require()  # a replaced store explains any fault
                raise

    def _fill(self, shard: int, offset: int, view: memoryview) -> None:
        """Fill memory with a shard's bytes from this offset on."""
        try:
            done = read_at(self._file(shard), offset, view)
        except FileNotFoundError as error:
            raise self._fault(shard, f"cannot be read ({error})") from error
        except OSError as error:
            raise unreadable(self._path(shard), error) from error
        if done < len(view):
            end, expected = offset + done, offset + len(view)
            raise self._fault(shard, f"ends at byte {end}, expected at least {expected}")

    def _fault(self, shard: int, what: str) -> SpgError:
        self._unchanged.require()  # a replaced store explains any fault
        return SpgError(
            f"{self._path(shard)} {what}. Check the disk, and the store with `spg-pipe verify`; "
            f"to mend it, {remade(self._path(shard))}."
        )

    def _path(self, shard: int) -> Path | str:
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


class RemoteTokens(RawTokens):
    """The token shards of one layer in an uncompressed store elsewhere.

    Neighbouring images are one request, several requests are under way, and shards come from the
    cache where there is one.
    """

    _piece_bytes = REQUEST_BYTES, 2 * REQUEST_BYTES
    _alone_bytes = 0  # a request takes its time, however few bytes it asks for

    def __init__(
        self,
        files: StoreFiles,
        spec: StoreSpec,
        layer: str,
        checksums: Checksums,
        entries: Sequence[ShardEntry],
    ) -> None:
        super().__init__(Path(), spec, layer, checksums)
        self._unchanged = Unchanged(None, spec.fingerprint)
        self._remote, self._threads = files, files.threads
        self._entries = {e.name: e for e in entries if e.name.startswith(f"tokens_{layer}/")}
        self._cached = files.cached(spec.fingerprint, list(self._entries.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        entries = list(self._entries.values())
        return RemoteTokens, (self._remote, self._spec, self._layer, self._checksums, entries)

    def _read_pieces(self, pieces: Sequence[tuple[int, int, int, int]], out: np.ndarray) -> None:
        try:
            super()._read_pieces(pieces, out)
        except DamagedError:
            if self._cached is None:
                raise
            for shard in {piece[0] for piece in pieces}:  # a bit of a kept file may have changed
                self._cached.drop(self._entry(shard))
            super()._read_pieces(pieces, out)

    def _fill(self, shard: int, offset: int, view: memoryview) -> None:
        entry = self._entry(shard)
        if self._cached is None or not self._cached.keeps(entry):
            view[:] = self._remote.part(entry, offset, offset + len(view))
            return
        with self._cached.opened(entry) as descriptor:
            if read_at(descriptor, offset, view) < len(view):
                raise self._fault(shard, "is cut off in the cache of remote stores")

    def _entry(self, shard: int) -> ShardEntry:
        return self._entries[chunk_file(f"tokens_{self._layer}", shard)]

    def _path(self, shard: int) -> str:
        return f"{self._remote.place}/{self._entry(shard).name}"


def read_at(descriptor: int, offset: int, view: memoryview) -> int:
    """Fill memory with a file's bytes from this offset on; fewer only where the file ends."""
    done = 0
    while done < len(view):
        got = os.preadv(descriptor, [view[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done

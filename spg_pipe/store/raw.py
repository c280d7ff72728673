"""Uncompressed tokens at fixed offsets: positional reads straight into the caller's memory."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.store.schema import StoreSpec, require_unchanged
from spg_pipe.store.shards import token_shard_name

REMAKE_SHARD = (
    "Check the disk, and the store with `spg-pipe verify`; make it again with "
    "`spg-pipe extract --replace` and the same options."
)
READ_THREADS = 4
"""Reads under way at once: enough for a disk's queue, harmless where the page cache answers."""
_PIECE_BYTES = 4 * 1024**2
"""Smaller requests are not worth a thread of their own."""


class RawTokens:
    """The token shards of one layer in a local store, where they are not mapped (`MappedTokens`).

    That is on other systems than Linux, on network file systems, and in Dask's processes. Reading
    an image is one `preadv` into the destination (docs/store.md, "Files"): no copy in Python, and
    threads read at the same time.
    """

    def __init__(
        self, root: Path, spec: StoreSpec, layer: str, threads: int = READ_THREADS
    ) -> None:
        self._root, self._spec, self._layer, self._threads = root, spec, layer, threads
        self._shape = spec.layers[layer]
        self._image_bytes = self._shape.patches * self._shape.dim * np.dtype(spec.dtype).itemsize
        self._files: dict[int, int] = {}

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
            If a shard ends too early.
        """
        pieces = self._pieces(images, packed=out.flags.c_contiguous)
        if len(pieces) == 1 or len(images) * self._image_bytes <= _PIECE_BYTES:
            self._read_pieces(pieces, out)
            return
        parts = [pieces[i :: self._threads] for i in range(self._threads)]
        # `list` waits, and raises what a thread raised.
        list(self._pool.map(lambda part: self._read_pieces(part, out), parts))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="spg-read")

    def _pieces(self, images: np.ndarray, *, packed: bool) -> list[tuple[int, int, int, int]]:
        """(shard, place in it, first row of `out`, images): neighbours become one read."""
        limit = max(1, _PIECE_BYTES // self._image_bytes) if packed else 1
        pieces: list[tuple[int, int, int, int]] = []
        for row, image in enumerate(images.tolist()):
            shard, place = divmod(image, self._spec.shard_images)
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
                name = token_shard_name(self._layer, shard)
                try:
                    got = os.preadv(self._file(shard), [view[done:]], offset + done)
                except OSError as error:
                    raise SpgError(
                        f"{self._root / name} cannot be read ({error}). {REMAKE_SHARD}"
                    ) from error
                if got == 0:
                    raise SpgError(
                        f"{self._root / name} ends at byte {offset + done}, expected at least "
                        f"{offset + len(view)}. {REMAKE_SHARD}"
                    )
                done += got

    def _file(self, shard: int) -> int:
        descriptor = self._files.get(shard)
        if descriptor is None:
            # Two threads may open the same shard; `setdefault` keeps one, the other is closed.
            opened = os.open(self._root / token_shard_name(self._layer, shard), os.O_RDONLY)
            descriptor = self._files.setdefault(shard, opened)
            if descriptor != opened:
                os.close(opened)
            require_unchanged(self._root, self._spec)
        return descriptor

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

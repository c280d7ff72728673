"""Uncompressed tokens as memory: a layer's shards mapped one after the other."""

import ctypes
import math
import mmap
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from spg_pipe.errors import SpgError
from spg_pipe.store.raw import READ_THREADS, REMAKE_SHARD
from spg_pipe.store.schema import OPEN_AGAIN, StoreSpec, require_unchanged
from spg_pipe.store.shards import token_shard_name

HUGE_PAGE = 2 * 1024**2
"""Bytes that one entry of the processor's tables maps, where the kernel has them in one piece."""
_HUGE_FROM = 3 * HUGE_PAGE // 4
"""Bytes of neighbouring images from which huge pages map little that nobody asked for."""
_RUN_BYTES = 32 * 1024**2
"""Neighbouring images that are asked for in one call."""
_REQUEST_BYTES = 1024**2
"""A request for reading ahead; the kernel cuts larger ones off (at 1.25 MB with its defaults)."""
# Linux's numbers for what Python does not name; the first exists since 5.14.
_POPULATE_READ = 22
_FIXED, _NORESERVE = 0x10, 0x4000
_MACHINES = ("x86_64", "aarch64")
"""Where these numbers are known to hold."""
_FILE_SYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay", "tmpfs"}
)
"""Of disks of this machine. A page that a network fails to give again ends the process."""


class MappedTokens:
    """The token shards of one layer in a local, uncompressed store, as one matrix.

    The kernel's page cache is used where it lies: a consumer gathers its rows from it without a
    copy in between. Pages are mapped by `fetch` and let go by `release`, so that the process's
    resident memory is that of the images in use, whatever the size of the store.

    Parameters
    ----------
    root : Path
        The store's folder.
    spec : StoreSpec
    layer : str
    huge : bool
        Map 2 MiB at a time where the page cache allows it: ~30 times quicker than pages of 4 KiB,
        and rows are found faster. Scattered small images would map, and read from a cold disk, much
        that nobody wants: see `huge_pays`.

    Attributes
    ----------
    rows : (R, D) tensor
        In the store's dtype, for reading. Rows that were not fetched, or were released since, are
        brought back when they are touched, but then a file that was cut off, or a disk that fails,
        ends the process (SIGBUS). What is written to them lasts until `release`, and never
        reaches the store.

    Raises
    ------
    OSError
        If this system cannot map them so; positional reads (`RawTokens`) always can.
    SpgError
        If the store was replaced since it was opened.
    """

    def __init__(self, root: Path, spec: StoreSpec, layer: str, *, huge: bool = True) -> None:
        if sys.platform != "linux" or platform.machine() not in _MACHINES:
            raise OSError(f"not tried on {sys.platform} {platform.machine()}")
        if (kind := _file_system(root)) not in _FILE_SYSTEMS:
            raise OSError(f"not tried on a file system of type {kind}")
        self._root, self._layer, self._per_shard = root, layer, spec.shard_images
        shape, dtype = spec.layers[layer], np.dtype(spec.dtype)
        row_bytes = shape.dim * dtype.itemsize
        self._patches, self._image_bytes = shape.patches, shape.patches * row_bytes
        # Shards begin at a huge page, as in their files, and at a row: one stride for the matrix.
        unit = math.lcm(HUGE_PAGE, row_bytes)
        self._span = -(-spec.shard_images * self._image_bytes // unit) * unit
        self._size = self._span * spec.shards
        # Reserves addresses only. Its deallocation, after the last view's, unmaps everything.
        reserved = mmap.mmap(-1, self._size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | _NORESERVE)
        memory = np.frombuffer(reserved, np.uint8)
        memory = memory[-memory.ctypes.data % HUGE_PAGE :][: self._size]
        self._address = memory.ctypes.data
        lengths = [len(spec.shard_rows(shard)) * self._image_bytes for shard in range(spec.shards)]
        self._inodes = [
            _map_file(self._address + shard * self._span, length, self._file(shard))
            for shard, length in enumerate(lengths)
        ]
        require_unchanged(root, spec)
        # Linux tells only the owner and who may write what is in memory; to others all seems to be.
        first = self._file(0)
        self._may_ask = os.access(first, os.W_OK) or first.stat().st_uid == os.geteuid()
        _advise(self._address, mmap.PAGESIZE, _POPULATE_READ)  # or this kernel is too old
        self._huge = huge
        with suppress(OSError):  # a kernel without huge pages
            advice = mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE
            _advise(self._address, self._size, advice)
            if huge:  # read no more than the huge page that is asked for
                _advise(self._address, self._size, mmap.MADV_RANDOM)
        self.rows = torch.from_numpy(memory.view(dtype).reshape(-1, shape.dim))

    def starts(self, images: np.ndarray) -> np.ndarray:
        """Rows of the images' first patches, (n,) int64; the others follow."""
        shards, places = np.divmod(np.asarray(images, np.int64), self._per_shard)
        return shards * (self._span * self._patches // self._image_bytes) + places * self._patches

    def runs(self, images: np.ndarray) -> list[range]:
        """Images in the order given, neighbours in a shard together (at most 32 MiB of them)."""
        most = max(1, _RUN_BYTES // self._image_bytes)
        found: list[range] = []
        for image in images.tolist():
            last = found[-1] if found else range(0)
            if image == last.stop and len(last) in range(1, most) and image % self._per_shard:
                found[-1] = range(last.start, image + 1)
            else:
                found.append(range(image, image + 1))
        return found

    def announce(self, run: range) -> None:
        """Have images read from the disk in the background, if they are not in memory."""
        start, length = self._pages(run)
        if self._may_ask and _likely_resident(start, length):
            return
        if self._huge:
            # Only a page fault reads into huge pages, and those stay for later epochs.
            self._readers.submit(self._bring, run)
            return
        for done in range(0, length, _REQUEST_BYTES):
            _advise(start + done, min(_REQUEST_BYTES, length - done), mmap.MADV_WILLNEED)

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READ_THREADS, thread_name_prefix="spg-read")

    def _bring(self, run: range) -> None:
        """Into the system's cache; not into this process. `fetch` meets any error again."""
        with suppress(OSError):
            _advise(*self._pages(run), _POPULATE_READ)
            self.release(run)

    def fetch(self, run: range) -> None:
        """Bring the rows of neighbouring images into memory.

        Raises
        ------
        SpgError
            If their shard ends too early or cannot be read.
        """
        shard, place = divmod(run.stop - 1, self._per_shard)
        file, end = self._file(shard), (place + 1) * self._image_bytes
        try:
            # The rest of a file's last page reads as zeros, so its size is asked for.
            found = file.stat()
            if found.st_size >= end and found.st_ino == self._inodes[shard]:
                _advise(*self._pages(run), _POPULATE_READ)
        except OSError as error:
            raise SpgError(f"{file} cannot be read ({error}). {REMAKE_SHARD}") from error
        if found.st_ino != self._inodes[shard]:
            raise SpgError(f"{file} was replaced while it was read. {OPEN_AGAIN}")
        if found.st_size < end:
            raise SpgError(
                f"{file} ends at byte {found.st_size}, expected at least {end}. {REMAKE_SHARD}"
            )

    def release(self, run: range) -> None:
        """Let go of images' pages: they stay in the system's cache, not in this process.

        Another stream may still use them, or their neighbours on the same page: its next touch
        maps them again.
        """
        _advise(*self._pages(run), mmap.MADV_DONTNEED)

    def release_runs(self, runs: Sequence[range]) -> None:
        """Let go of many images, in one call where that touches no more mappings than many do.

        Each call makes every processor forget where this process's memory is.
        """
        if self._huge and len(runs) >= len(self._inodes):
            self.release_all()
            return
        for run in runs:
            self.release(run)

    def release_all(self) -> None:
        """Let go of every image."""
        _advise(self._address, self._size, mmap.MADV_DONTNEED)

    def read(self, images: np.ndarray, out: np.ndarray) -> None:
        """Copy patch tokens of some images, one after the other.

        Parameters
        ----------
        images : (n,) int
            Image rows, in any order.
        out : (n, N, D)
            In the store's dtype.

        Raises
        ------
        SpgError
            If a shard ends too early or cannot be read.
        """
        runs, rows, first = self.runs(images), self.rows.numpy(), 0
        for run in runs[:READ_THREADS]:
            self.announce(run)
        for number, run in enumerate(runs):
            for coming in runs[number + READ_THREADS : number + READ_THREADS + 1]:
                self.announce(coming)
            self.fetch(run)
            start = int(self.starts(np.array([run.start]))[0])
            flat = rows[start : start + len(run) * self._patches]
            out[first : first + len(run)] = flat.reshape(len(run), self._patches, -1)
            first += len(run)
            self.release(run)

    def _pages(self, run: range) -> tuple[int, int]:
        """Address and length of the pages that hold images of one shard."""
        shard, place = divmod(run.start, self._per_shard)
        first = self._address + shard * self._span + place * self._image_bytes
        start = first // mmap.PAGESIZE * mmap.PAGESIZE
        length = first + len(run) * self._image_bytes - start
        return start, -(-length // mmap.PAGESIZE) * mmap.PAGESIZE

    def _file(self, shard: int) -> Path:
        return self._root / token_shard_name(self._layer, shard)


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
)
_LIBC.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def huge_pays(jobs: Sequence[np.ndarray], image_bytes: int) -> bool:
    """Whether groups of images are read in runs so long that huge pages waste little."""
    runs = sum(1 + np.count_nonzero(np.diff(job) != 1) for job in jobs if len(job))
    return bool(sum(map(len, jobs)) * image_bytes >= _HUGE_FROM * runs)


def _file_system(root: Path) -> str:
    """The type of the file system that holds a folder, as Linux names it."""
    place, kind, longest = str(root.resolve()), "", -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ").rstrip("/")
        if f"{place}/".startswith(f"{point}/") and len(point) >= longest:
            kind, longest = found, len(point)
    return kind


def _map_file(address: int, length: int, path: Path) -> int:
    """Map a file's beginning over addresses that are reserved; its inode."""
    # Private and writable, because torch knows no read-only memory: a write would crash otherwise.
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | _NORESERVE | _FIXED
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = os.fstat(descriptor)
        if found.st_size < length:
            raise SpgError(
                f"{path} ends at byte {found.st_size}, expected at least {length}. {REMAKE_SHARD}"
            )
        if _LIBC.mmap(address, length, protection, flags, descriptor, 0) != address:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)  # the mapping stays
    return found.st_ino


def _likely_resident(address: int, length: int) -> bool:
    """Whether the first, the middle and the last page are in memory, as far as this user may know.

    Asking for every page would take longer than mapping them.
    """
    flag = ctypes.c_ubyte()
    middle = address + length // 2 // mmap.PAGESIZE * mmap.PAGESIZE
    for page in (address, middle, address + length - mmap.PAGESIZE):
        if _LIBC.mincore(page, mmap.PAGESIZE, ctypes.byref(flag)) or not flag.value & 1:
            return False
    return True


def _advise(address: int, length: int, advice: int) -> None:
    # Not mmap.madvise, which holds Python's lock while the disk is read.
    if _LIBC.madvise(address, length, advice):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

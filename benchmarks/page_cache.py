"""Make files cold (`posix_fadvise`), and show that they are (`mincore`)."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)


def drop(files: Iterable[Path]) -> None:
    """Write back and forget the cached pages of files."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_share(files: Iterable[Path]) -> float:
    """The share of the files' pages that are in memory, 0 to 1."""
    pages = resident = 0
    for path in files:
        # Copy-on-write, because mincore wants an address; nothing is touched or written.
        mapped = np.memmap(path, np.uint8, mode="c")
        flags = np.empty(-(-mapped.size // mmap.PAGESIZE), np.uint8)
        address = ctypes.c_void_p(mapped.ctypes.data)
        length = ctypes.c_size_t(mapped.size)
        if _LIBC.mincore(address, length, ctypes.c_void_p(flags.ctypes.data)):
            raise OSError(ctypes.get_errno(), "mincore", str(path))
        pages += flags.size
        resident += int((flags & 1).sum())
    return resident / max(pages, 1)

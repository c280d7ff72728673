"""What every artefact on disk shares: atomic writing, fingerprints and provenance."""

import errno
import glob
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, Any

from spg_pipe.errors import SpgError, naming

_VERSIONED = ("spg-pipe", "torch", "timm", "open_clip_torch", "zarr", "numpy", "scipy", "pillow")
_OWNER = re.compile("[0-9a-f]{8}-[0-9]{1,9}")
"""Of a temporary name: the machine, and its process."""
_SYNCS = 8
"""Files that are fsynced side by side."""
_OLD_SECONDS = 2 * 86_400
"""Untouched for so long, what a writer on another machine left is taken for left over."""


def fingerprint(content: Any) -> str:
    """SHA-256 of canonical JSON: equal content gives equal fingerprints on any machine."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that can move a number; provenance, never part of a fingerprint."""
    found = {name: metadata.version(name) for name in _VERSIONED}
    return found | _accelerator()


def _accelerator() -> dict[str, str]:
    """The GPU's name, and its driver where the extra `gpu` can read it; empty without CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    found = {"gpu": str(torch.cuda.get_device_name())}
    if importlib.util.find_spec("pynvml"):
        import pynvml

        with suppress(pynvml.NVMLError):  # on ROCm and in some containers its library is missing
            pynvml.nvmlInit()
            found["driver"] = pynvml.nvmlSystemGetDriverVersion()
    return found


def jsonable(value: Any) -> Any:
    """A copy in which NaN and infinities are null, because JSON has neither."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps(jsonable(content), indent=2, sort_keys=False, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write text atomically (temporary name, fsync, rename); a final newline is added."""
    write_bytes(path, (text.rstrip("\n") + "\n").encode())


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write bytes atomically and durably; see `whole_file`."""
    with whole_file(path) as stream:
        stream.writelines(parts)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream that becomes `path` when the block ends well: temporary name, fsync, rename, fsync.

    An OSError names `path`, or the folder that cannot be made. A link that has the temporary name
    is not written through.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_folder(path.parent.absolute())
    temporary = _beside(path, "tmp")
    with naming(path, temporary):
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def link_below(out: Path, file: str) -> Path | None:
    """The first link on the way to a file below a folder; None if there is none."""
    path = out
    for part in PurePosixPath(file).parts:
        path /= part
        if path.is_symlink():
            return path
    return None


def require_writable(path: Path) -> None:
    """Refuse early, with an OSError that names the folder, a `path` that cannot be made later.

    By writing a file without a name: permissions do not tell of a read-only or a full disk.
    """
    folder = next(above for above in path.absolute().parents if above.exists())
    with naming(folder, folder), tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"0")


def _sync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power failure."""
    if os.name != "nt":  # folders cannot be opened there; NTFS journals the rename itself
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_all(path: Path) -> None:
    """Make all files and folders below a folder, and itself, survive a power failure.

    Side by side, because a file system writes those that wait at the same time in one go: 1,000
    pictures took 0.4 s instead of 8 s.
    """
    if os.name == "nt":  # files are flushed by those who write them alone
        return
    inside = [(Path(folder), names) for folder, _, names in os.walk(path)]
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(_sync, [folder / name for folder, names in inside for name in names]))
        list(pool.map(_sync, [folder for folder, _ in inside]))


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` when the block ends well, and vanishes otherwise.

    An artefact is therefore either the old one, or the new one as a whole, also after a power
    failure: every file in it is fsynced first.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        # One look: another process may put its folder there just now.
        if not stat.S_ISDIR(path.stat().st_mode):
            raise SpgError(f"{path} is a file; a folder is to be written there. Move it away.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (_beside(path, end) for end in ("tmp", "old"))
    clear_leftovers(path)
    try:
        with naming(path, temporary):
            temporary.mkdir()
            yield temporary
            _sync_all(temporary)
            _put_in_place(temporary, path, old)
            _sync_folder(path.parent)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        raise
    finally:
        for rest in (temporary, old):
            _remove(rest)


def _put_in_place(temporary: Path, path: Path, old: Path) -> None:
    """Rename a folder to `path`. Another process may do so at the same time: the last one stays.

    What is there is moved aside, not removed: a kill between the two renames loses nothing.
    """
    while True:
        if path.is_dir() or path.is_symlink():
            _remove(old)
            with suppress(FileNotFoundError):  # the other process was faster
                path.rename(old)
        try:
            temporary.rename(path)
            return
        except OSError as error:  # here, too
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _remove(path: Path) -> None:
    """Remove a file or a folder, of a link nothing but the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left beside it; an artefact moved aside comes back.

    Another machine may be at work in a shared folder, and nobody here knows: what it left goes
    when nothing has changed in it for two days.
    """
    for rest in path.parent.glob(f".{glob.escape(path.name)}.*"):
        _, _, owner_and_end = rest.name.partition(f"{path.name}.")
        owner, _, end = owner_and_end.partition(".")
        if end not in ("tmp", "old") or not _OWNER.fullmatch(owner) or not _is_left(rest, owner):
            continue
        if end == "old" and not path.exists():
            rest.rename(path)
        else:
            _remove(rest)


@cache  # once a process: a folder may get thousands of files
def _clear_folder(folder: Path) -> None:
    """Remove the files that killed writers left in a folder."""
    for rest in folder.glob(".*.tmp"):
        owner = rest.name.split(".")[-2]
        if not rest.is_dir() and _OWNER.fullmatch(owner) and _is_left(rest, owner, same=False):
            _remove(rest)


def _beside(path: Path, end: str) -> Path:
    """The hidden sibling that this process, and no other on any machine, writes."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.{end}")


@cache
def _host() -> str:
    """8 hex digits of this machine, where a process number means one process: with its name and,
    because containers number anew and may share a name, its numbering's."""
    numbering = Path("/proc/self/ns/pid")
    inode = numbering.stat().st_ino if numbering.exists() else 0
    return fingerprint([platform.node(), inode])[:8]


def _runs(process: int) -> bool:
    """Whether a process of this machine is alive; one that has ended and that nobody asked after is
    not: in a container the first process may be one that never asks."""
    import psutil

    try:
        return bool(psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, "dead"))
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # of another user
        return True


def _is_left(rest: Path, owner: str, *, same: bool = True) -> bool:
    """Whether the process that wrote this is gone, as far as can be known.

    `same`: what has this process's number is of an earlier one, and of none of its threads.
    """
    host, _, number = owner.partition("-")
    if host == _host() and int(number) == os.getpid():
        return same
    if host == _host() and not _runs(int(number)):
        return True
    try:
        found = rest.lstat()
    except FileNotFoundError:  # its writer is done
        return False
    return time.time() - max(found.st_mtime, found.st_ctime) > _OLD_SECONDS

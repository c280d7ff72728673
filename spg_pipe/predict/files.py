"""What `predict` and `explain` write: a new result replaces an older one as a whole or not at all.

The folder may hold other files of a person, so it cannot be exchanged as an artefact's is: the
new files wait in a hidden folder inside it, on the same file system, and are renamed into place.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from spg_pipe.artefacts.files import require_writable
from spg_pipe.datasets.walk import EXPLAINED, EXPLANATIONS, OVERLAYS, SCORES, SCORES_HEADER
from spg_pipe.errors import SpgError, naming

_UNFINISHED = ".spg-predict."
_NAME_BYTES = 240
"""Of a heat map's name: a file system takes 255, of which its temporary name needs some."""
_PATH_BYTES = 1024
"""Of all names below the output folder, whose own are to fit into the system's 4096 as well."""


class Output(NamedTuple):
    """What a command writes besides pictures."""

    file: str
    """Its main file: the last to be written, and the sign of a result."""
    head: str
    """What that begins with."""
    command: str


PREDICTIONS = Output(SCORES, SCORES_HEADER, "predict")
LINES = Output(EXPLANATIONS, '{"path": ', "explain")


def picture_paths(
    images: Sequence[Path], folder: str = OVERLAYS, ending: str = ".png"
) -> list[Path]:
    """Files of pictures, relative to the output folder, of images relative to theirs.

    An image's own path and the ending. Where that is too long for a file, or the place of a folder
    that another picture needs, the name's beginning and 16 hex digits of the whole path's SHA-256:
    the same in every run.
    """

    def fitting(path: Path) -> Path:
        name, whole = os.fsencode(path.name), os.fsencode(path.as_posix())
        if path not in folders and len(name) <= _NAME_BYTES and len(whole) <= _PATH_BYTES:
            return path
        start = os.fsdecode(name[: _NAME_BYTES // 2].decode(errors="ignore").encode())
        return Path(folder, f"{start}-{hashlib.sha256(whole).hexdigest()[:16]}{ending}")

    plain = [Path(folder, image.parent, f"{image.name}{ending}") for image in images]
    folders = {above for path in plain for above in path.parents}
    return [fitting(path) for path in plain]


def is_own_file(path: Path, out: Path) -> bool:
    """Whether a file is a picture below the output folder, finished or waiting."""
    file, folder = path.resolve(), out.resolve()
    below = file.relative_to(folder).parts if file.is_relative_to(folder) else ()
    ours = (OVERLAYS, EXPLAINED)
    return len(below) > 1 and (below[0] in ours or below[0].startswith(_UNFINISHED))


def check_out(out: Path, names: Sequence[Path], output: Output = PREDICTIONS) -> None:
    """Refuse to replace files that are not an earlier result: an `SpgError` names them.

    Also folders that lead elsewhere by a link, and, with an OSError, an `out` that cannot be
    written. `names` are to be written, relative to `out`, which need not exist.
    """
    advice = "Choose another --out, or move it away."
    main = out / output.file
    folders = sorted({out / above for name in names for above in name.parents} - {out})
    for folder in folders:
        if folder.is_symlink():
            raise SpgError(
                f"{folder} is a link to {folder.readlink()}; pictures would be written there. "
                f"{advice}"
            )
    for path in (out, *folders, main, *(out / name for name in names)):
        expected = "folder" if path in (out, *folders) else "file"
        if path.exists() and path.is_dir() != (expected == "folder"):
            found = "file" if expected == "folder" else "folder"
            raise SpgError(f"{path} is a {found}; a {expected} is to be written there. {advice}")
    mains = [output, *(each for each in (LINES,) if Path(each.file) in names)]
    if there := [each for each in mains if (out / each.file).exists()]:
        for each in there:
            _require_own(out / each.file, each, advice)
    elif taken := [name for name in names if (out / name).exists()]:
        # Without scores or lines beside it, a picture's name is no sign of who wrote the file.
        raise SpgError(
            f"{out / taken[0]} would be replaced, but is not part of a result of "
            f"{output.command}: there is no {output.file} in {out}. {advice}"
        )
    require_writable(main)


def _require_own(path: Path, output: Output, advice: str) -> None:
    with path.open("rb") as stream:
        first = stream.readline(4096).strip().decode(errors="replace")
    if not first.startswith(output.head):
        raise SpgError(
            f"{path} is not a result of {output.command} and would be replaced: its first line is "
            f"{first[:80]!r}, expected {output.head!r} and more. {advice}"
        )


@contextmanager
def whole_result(out: Path, names: Sequence[Path], output: Output = PREDICTIONS) -> Iterator[Path]:
    """A folder for the new files; they move into `out` together when the block ends well.

    Otherwise, and that includes Ctrl-C, `out` is left as it was found. No other file of `out` is
    touched. The block writes the main file and `names`, which are relative, or some of these: the
    earlier file of one that is missing is removed.
    """
    every = [*names, Path(output.file)]
    above = {folder for name in every for folder in (out / name).parents}
    made = sorted((folder for folder in above if not folder.exists()), reverse=True)
    waiting = out / f"{_UNFINISHED}{os.getpid()}"
    try:
        with naming(out, waiting):
            _remove_abandoned(out)
            out.mkdir(parents=True, exist_ok=True)
            waiting.mkdir()
            (waiting / "new").mkdir()
            yield waiting / "new"
            _exchange(out, every, waiting / "new", waiting / "old")
    except BaseException:
        _discard(waiting)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    shutil.rmtree(waiting, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    """Remove what killed processes left, unless an older result waits there to be moved back."""
    for folder in out.glob(f"{_UNFINISHED}*"):
        number = folder.name.removeprefix(_UNFINISHED)
        if folder.is_symlink():
            folder.unlink()
        elif number.isdigit() and (
            int(number) == os.getpid() or not psutil.pid_exists(int(number))
        ):
            _discard(folder)


def _exchange(out: Path, names: Sequence[Path], new: Path, old: Path) -> None:
    """The older files aside, then the new ones in; or all back, as the folders say who moved.

    The main file, the last name, goes first and comes last: a process that is killed in between
    leaves none beside pictures of another run.
    """
    try:
        for name in reversed(names):
            if (out / name).exists():
                _move(name, out, old)
        for name in names:
            if (new / name).exists():  # a picture may have failed, or not been asked for
                _move(name, new, out)
    except BaseException:
        for name in names:
            if (old / name).exists():
                (old / name).replace(out / name)
            elif not (new / name).exists():
                (out / name).unlink(missing_ok=True)
        raise


def _move(name: Path, source: Path, target: Path) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).replace(target / name)


def _discard(waiting: Path) -> None:
    """Remove the waiting files, but no older ones that could not be moved back."""
    if not any(path.is_file() for path in (waiting / "old").rglob("*")):
        shutil.rmtree(waiting, ignore_errors=True)

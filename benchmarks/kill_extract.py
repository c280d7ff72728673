"""Extractions killed at random moments and resumed: is every finished store the same to the byte?

    python -m benchmarks.kill_extract --times 20

A demo set is extracted once without interruption. Then, again and again, `spg-pipe extract` is
killed with SIGKILL at a random moment after it has begun its store, and run again to its end.
"""

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SETTINGS = ("--set", "extract.shard_images=8", "--image-size", "96")


def digests(store: Path) -> dict[str, str]:
    """Every file of a store with the SHA-256 of its bytes."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def arguments(store: Path) -> list[str]:
    """What `spg-pipe` is called with: the demo's first set into `store`."""
    return ["extract", "--split", "demo-mvtec", "--quiet", "--out", str(store), *SETTINGS]


def extract(folder: Path, store: Path) -> subprocess.Popen[bytes]:
    """Start `spg-pipe extract`."""
    code = "from spg_pipe.cli.main import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *arguments(store)], cwd=folder)


def in_a_process(folder: Path, store: Path) -> int:
    """`spg-pipe extract` from its start to its end; its exit code."""
    return extract(folder, store).wait()


def killed(folder: Path, store: Path, delay: float) -> bool:
    """Kill an extract `delay` seconds after its store appeared; False if it was done before."""
    process = extract(folder, store)
    while not (store / "zarr.json").exists() and process.poll() is None:
        time.sleep(0.002)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def run(
    times: int,
    seed: int,
    folder: Path,
    complete: Callable[[Path, Path], int] = in_a_process,
) -> int:
    """Print a line an extraction; the number of stores that differ.

    `folder` holds params.yaml; what is to be killed is always a process, what runs to its end is
    `complete(folder, store)`, an exit code.
    """
    generator = random.Random(seed)  # noqa: S311 - moments, not secrets
    whole = folder / "whole.zarr"
    if complete(folder, whole):
        raise SystemExit("the uninterrupted extract failed")
    written = [path.stat().st_mtime for path in whole.rglob("*") if path.is_file()]
    seconds = max(written) - min(written)
    expected, wrong, kills = digests(whole), 0, 0
    for number in range(3 * times):
        if kills == times:
            break
        store = folder / f"{number}.zarr"
        delay = generator.uniform(0, seconds)
        was_killed = killed(folder, store, delay)
        kills += was_killed
        finished = len(list(store.glob("tokens_s16/c/*")))
        code = complete(folder, store)
        same = code == 0 and digests(store) == expected
        wrong += not same
        print(
            f"{number + 1:2d}: {'killed' if was_killed else 'done'} after {delay:5.2f} s with "
            f"{finished:2d} shards, resumed: {'identical' if same else 'DIFFERENT'}",
            flush=True,
        )
        shutil.rmtree(store)
    if kills < times:
        raise SystemExit(f"only {kills} of {times} extracts could be killed before their end")
    print(f"{kills} kills; {wrong} stores differ from the uninterrupted one")
    return wrong


def main() -> None:
    """Exit code 1 if a store differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = Path(__file__).resolve().parent.parent / "recipes" / "demo.yaml"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(recipe, Path(folder) / "params.yaml")
        raise SystemExit(min(run(options.times, options.seed, Path(folder)), 1))


if __name__ == "__main__":
    main()

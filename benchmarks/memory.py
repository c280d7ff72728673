"""Peak memory of extracting and of streaming, for few images and for many.

    python -m benchmarks.memory [--images 500 4000] [--folder DIR]

Every figure is the high-water mark of a process of its own (VmHWM: what it mapped of the page cache
is in it). The last line is one JSON object with the growth of each task, 0 is flat.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from benchmarks import store_formats

_EVERY = 0.01
"""Seconds between two looks at a process's memory."""


def peak_megabytes() -> float:
    """The high-water mark of this process's resident memory."""
    return status_megabytes("VmHWM")


def status_megabytes(name: str) -> float:
    """A line of this process's status in MiB: `RssAnon` is its private memory, `RssFile` are pages
    of files that it has mapped, which the system takes back when it needs them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Peaks of `RssAnon` and `RssFile` in MiB while the block runs, by looking every 10 ms."""
    peaks, ended = {"RssAnon": 0.0, "RssFile": 0.0}, Event()

    def look() -> None:
        while not ended.wait(_EVERY):
            for name, peak in peaks.items():
                peaks[name] = max(peak, status_megabytes(name))

    watcher = Thread(target=look)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def task(name: str, folder: Path, images: int) -> float:
    """Do one task in this process; its peak in MiB."""
    from spg_pipe.store.reader import FeatureStore
    from spg_pipe.store.source import TokenSource
    from spg_pipe.store.stream import image_batches, ordered_batches, sources_of, token_batches

    if name == "extract":
        store_formats.write_store(folder, images)
        return peak_megabytes()
    store = FeatureStore(folder / "store.zarr")
    if name == "tokens":
        source = TokenSource(store, store_formats.LAYER)
        seen = sum(len(b) for b in token_batches(source, seed=1, epoch=0, batch_tokens=8192))
        seen //= store_formats.PATCHES
    elif name == "image groups":
        seen = sum(len(b.images) for b in image_batches(sources_of(store), 8, seed=1, epoch=0))
    else:
        seen = sum(len(rows) for rows, _ in ordered_batches(sources_of(store), 8))
    assert seen == images, (name, seen)
    return peak_megabytes()


TASKS = ("extract", "tokens", "image groups", "sequential")


def main() -> None:
    """Print a table and the line of growths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs=2, default=(500, 4000))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(task(options.task, options.folder, options.images[0]))
        return
    few, many = options.images
    if few < 2 * store_formats.WINDOW:
        parser.error(f"--images: from {2 * store_formats.WINDOW} on; else no window is full")
    print(f"{store_formats.PATCHES} × {store_formats.DIM} float16 an image; MiB at the peak")
    print(f"| task | {few} images | {many} images | growth |\n|---|---|---|---|")
    growth = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for name in TASKS:
            peaks = [_in_process(name, Path(temporary) / str(n), n) for n in options.images]
            growth[name] = peaks[1] / peaks[0] - 1
            print(
                f"| {name} | {peaks[0]:,.0f} | {peaks[1]:,.0f} | {growth[name]:+.1%} |", flush=True
            )
    print(json.dumps({name: round(value, 4) for name, value in growth.items()}))


def _in_process(name: str, folder: Path, images: int) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", "--task", name, "--folder", str(folder)]
    command += ["--images", str(images), str(images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()

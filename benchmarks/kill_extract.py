"""Extractions killed at random moments and resumed: is every finished store the same to the byte?

    python -m benchmarks.kill_extract --times 20

Random pictures are extracted once without interruption. Then, again and again, a process that
extracts them is killed with SIGKILL at a random moment after it has begun its store, and the
extraction is run again to its end.
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
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from spg_pipe.backbones import load_backbone
from spg_pipe.backbones.base import Backbone
from spg_pipe.datasets.build import build_manifest
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.recipe.data import Dataset
from spg_pipe.store.extract import Extraction, extract

IMAGES, SIDE, CATEGORIES = 20, 96, ("bolt", "nut", "ring")
ROOT = Path(__file__).resolve().parent.parent


def write_pictures(root: Path, images: int) -> None:
    """So many random pictures a category, every fourth with a defect, in the `folder` layout."""
    rng = np.random.default_rng(images)
    for category in CATEGORIES:
        for number in range(images):
            pixels = rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
            kind = "dent" if number % 4 == 0 else "good"
            files = {f"{kind}/{number:03d}.png": pixels}
            if kind == "dent":
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[20:60, 30:70] = 255
                pixels[mask > 0] //= 4
                files[f"ground_truth/dent/{number:03d}_mask.png"] = mask
            for name, array in files.items():
                (root / category / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / category / name)


def pictures(folder: Path) -> tuple[Manifest, Backbone, Extraction]:
    """Them, a backbone, and shards of 8 images."""
    manifest = build_manifest(
        Dataset(name="random", layout="folder", root=folder / "raw", split="all")
    )
    backbone = load_backbone("efficientnet-lite0", image_size=SIDE)
    return manifest, backbone, Extraction(shard_images=8)


def extract_pictures(folder: Path, store: Path) -> None:
    """Extract them into `store`."""
    manifest, backbone, how = pictures(folder)
    extract(manifest, backbone, store, how)


def digests(store: Path) -> dict[str, str]:
    """Every file of a store with the SHA-256 of its bytes."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def killed(folder: Path, store: Path, delay: float) -> tuple[bool, float]:
    """Kill an extract `delay` seconds after its store appeared: whether it was not done before, and
    seconds from then on."""
    command = [sys.executable, "-m", "benchmarks.kill_extract", "--extract", folder, store]
    process = subprocess.Popen(command, cwd=ROOT)
    while not (store / "zarr.json").exists() and process.poll() is None:
        time.sleep(0.002)
    began = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay)
        return False, time.monotonic() - began
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True, delay


def run(times: int, seed: int, folder: Path) -> int:
    """Print a line an extraction; the number of stores that differ."""
    generator = random.Random(seed)  # noqa: S311 - moments, not secrets
    write_pictures(folder / "raw", IMAGES)
    whole = folder / "whole.zarr"
    extract_pictures(folder, whole)
    written = [path.stat().st_mtime for path in whole.rglob("*") if path.is_file()]
    seconds = max(written) - min(written)
    expected, wrong, kills = digests(whole), 0, 0
    for number in range(3 * times):
        if kills == times:
            break
        store = folder / f"{number}.zarr"
        delay = generator.uniform(0, seconds)
        was_killed, took = killed(folder, store, delay)
        kills += was_killed
        seconds = seconds if was_killed else min(seconds, took)  # the machine may be faster now
        finished = len(list(store.glob("tokens_s16/c/*")))
        extract_pictures(folder, store)
        same = digests(store) == expected
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
    parser.add_argument("--extract", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.extract:
        extract_pictures(*options.extract)
        return
    with tempfile.TemporaryDirectory() as folder:
        raise SystemExit(min(run(options.times, options.seed, Path(folder)), 1))


if __name__ == "__main__":
    main()

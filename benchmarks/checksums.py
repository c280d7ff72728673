"""What it costs that the first reader of a store holds every image against its checksum.

    python -m benchmarks.checksums [--images 96] [--rounds 7]

28×28×1024 float16 tokens in the page cache: reading them all, `score` by guides of one layer, the
pass of contrast guides, and an epoch of the SAE (C = 4096, 64 images of ViT-S size), each with the
checks and without, in turn.
Seconds are of the processor (all threads), which other programs do not lengthen. The last line is
one JSON object: the share that the checks add (0.03 is 3 %).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.labelled_store import labelled_store
from benchmarks.sae_epoch import DIM as SAE_DIM
from benchmarks.sae_epoch import IMAGES as SAE_IMAGES
from benchmarks.sae_epoch import METHOD, PARAMS
from benchmarks.sae_epoch import SIZE as SAE_SIZE
from benchmarks.score_evaluate import DICT_SIZE, DIM, made_up, write_store
from benchmarks.timing import machine
from spg_pipe.detector.scores import score_store
from spg_pipe.guides.contrast import class_sums
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.tokens import Checksums


def read_all(path: Path) -> None:
    """All tokens, eight images at a time."""
    store = FeatureStore(path)
    for layer in store.layers:
        for start in range(0, len(store), 8):
            store.tokens(layer, np.arange(start, min(start + 8, len(store))))


def cost(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median processor seconds with the checks and without; each round has both, in turn."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds + 1):
        for checked in (number % 2 == 0, number % 2 == 1):
            with mock.patch.object(
                Checksums, "damaged", Checksums.damaged if checked else lambda *_: None
            ):
                start = time.process_time()
                work()
            if number:
                seconds[checked].append(time.process_time() - start)
    return statistics.median(seconds[True]), statistics.median(seconds[False])


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{machine()}; {options.images} images, medians of {options.rounds}", flush=True)
    detector, shares = made_up(DIM, DICT_SIZE)[1], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = Path(write_store(folder / "wide", options.images, DIM).path)
        (folder / "sae").mkdir()
        sizes = {"images": SAE_IMAGES, "dim": SAE_DIM, "size": SAE_SIZE}
        trained = Path(labelled_store(folder / "sae", **sizes).path)
        work = {
            "read": lambda: read_all(path),
            "score": lambda: score_store(detector, FeatureStore(path), folder / "scores"),
            "guides": lambda: class_sums(FeatureStore(path)),
            "sae_epoch": lambda: train_sae(FeatureStore(trained), PARAMS, METHOD, seed=111),
        }
        for name, each in work.items():
            checked, plain = cost(each, options.rounds if name != "sae_epoch" else 3)
            shares[f"checksums_{name}"] = checked / plain - 1
            print(f"{name:10} {checked:8.3f} s with, {plain:8.3f} s without", flush=True)
    print(json.dumps({name: round(value, 4) for name, value in shares.items()}))


if __name__ == "__main__":
    main()

"""How fast `predict` starts and goes on, decoding included.

    python -m benchmarks.predict_speed DETECTOR PHOTOS [--images 200]

PHOTOS is a folder; its images are repeated under other names up to the number. Printed are:
the time from the command to its first line; the rate of a run with heat maps and without, beside
two bounds (forward passes alone + decoding / cores); and the time of single images and batches in a
running process, from the file to the finished map.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.memory import peak_megabytes
from spg_pipe.detector.model import Detector
from spg_pipe.images.preprocess import preprocess
from spg_pipe.predict.finish import Finish, finish
from spg_pipe.predict.items import Item, Reading, find_items
from spg_pipe.predict.judge import judge_items
from spg_pipe.predict.predictor import Predictor, load_predictor
from spg_pipe.predict.run import ResultFolder, RunRecord
from spg_pipe.predict.view import View

BATCHES = (1, 4, 8)
HOW = Reading()


def repeated(photos: Path, images: int, folder: Path) -> list[Item]:
    """So many images: links to the photographs."""
    files = [item.path for item in find_items([str(photos)], folder / "none").listed if item.path]
    for number in range(images):
        file = files[number % len(files)].resolve()
        (folder / f"{number:04d}{file.suffix}").symlink_to(file)
    return list(find_items([str(folder)], folder.parent / "out").listed)


def first_line(detector: Path, image: Path, out: Path) -> float:
    """Seconds from the command to its first line."""
    command = [sys.executable, "-c", "from spg_pipe.cli.main import main; main()", "predict"]
    command += [str(detector), str(image), "--out", str(out), "--json", "--device", "cpu"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return time.perf_counter() - start


def run_seconds(predictor: Predictor, items: list[Item], out: Path, *, overlays: bool) -> float:
    """Seconds of a run, without what comes before the first image."""
    start = time.perf_counter()
    with ResultFolder(out, RunRecord(identity={})) as folder:
        how = Finish(predictor, out, folder.plan, overlays=overlays)
        for entry in judge_items(predictor, items, HOW, partial(finish, how=how)):
            folder.add(entry)
        folder.finish()
    return time.perf_counter() - start


def bounds(predictor: Predictor, items: list[Item]) -> list[float]:
    """Seconds that forward passes alone and decoding shared by the cores need.

    With a batch of 8 on all cores, as `extract_overhead` has it, and with an image on each core.
    """
    spec, cores = predictor.backbone.spec.preprocess, os.cpu_count() or 1
    start = time.perf_counter()
    squares = [preprocess(item.pixels(item.content(), HOW), spec) for item in items]
    decode = time.perf_counter() - start
    images, forward = torch.from_numpy(np.stack(squares)), []
    for size, workers in ((8, 1), (1, cores)):
        threads = (torch.set_num_threads, (cores // workers,))
        with ThreadPoolExecutor(workers, "forward", *threads) as pool:
            start = time.perf_counter()
            list(pool.map(predictor.backbone, images.split(size)))
            forward.append(time.perf_counter() - start)
    return [seconds + decode / cores for seconds in forward]


def batch_seconds(predictor: Predictor, items: list[Item], size: int) -> np.ndarray:
    """Of each batch, from the files to the maps at the images' own size."""
    seconds = []
    for start in range(0, len(items) - size + 1, size):
        begun = time.perf_counter()
        pixels = [item.pixels(item.content(), HOW) for item in items[start : start + size]]
        judged = predictor.judge(pixels)
        for number, image in enumerate(pixels):
            View((image.shape[0], image.shape[1])).back(predictor.maps(judged, number))
        seconds.append(time.perf_counter() - begun)
    return np.array(seconds[1:] or seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=200)
    given = parser.parse_args()
    predictor = load_predictor(Detector.load(given.detector), (), None, "cpu", print)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in").mkdir()
        items = repeated(given.photos, given.images, folder / "in")
        starts = [
            first_line(given.detector, folder / "in" / items[0].name, folder / f"start{n}")
            for n in range(3)
        ]
        print(
            f"start: {min(starts):.2f} s to the first line (of 3; median {sorted(starts)[1]:.2f})"
        )
        for size in BATCHES:
            p50, p95, p99 = np.percentile(batch_seconds(predictor, items, size), (50, 95, 99)) * 1e3
            print(f"batch of {size}: p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms")
        batches, single = bounds(predictor, items)
        for overlays in (False, True):
            out = folder / f"out{overlays}"
            seconds = run_seconds(predictor, items, out, overlays=overlays)
            what = "with heat maps" if overlays else "without heat maps"
            print(
                f"{what}: {len(items) / seconds:.1f} images/s, {batches / seconds:.3f} of the "
                f"bound with batches of 8, {single / seconds:.3f} with an image on each core"
            )
    print(f"peak memory {peak_megabytes():.0f} MB")


if __name__ == "__main__":
    main()

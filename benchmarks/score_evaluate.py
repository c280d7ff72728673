"""`score` and `evaluate` from a finished store, as the pipeline runs them, against the recipe.

    python -m benchmarks.score_evaluate [--images 200] [--rounds 3] [--memory 500 4000]

Speed: 28×28×1024 tokens (ViT-L at 448), C = 4096, everything that the two stages write included.
Baseline: benchmarks/reference/evaluate.py on the same store. Memory: processes of their own with
narrow tokens, private memory and pages of files apart, and seconds. The last line is one JSON
object: the ratio of medians, the growth of the private peak (0 is flat), and the time an image
among many over that among few.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.memory import watched
from benchmarks.reference.evaluate import LiteralModel, pixel_metrics
from benchmarks.store_formats import LAYER, RandomTokens
from benchmarks.timing import machine, medians
from spg_pipe.backbones.base import LayerTokens
from spg_pipe.datasets.build import build_manifest
from spg_pipe.decision.rules import Published
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import Auxiliary, DetectorRecord, SaeOrigin
from spg_pipe.detector.scores import score_store
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.layer import LayerGuides
from spg_pipe.metrics.tables import MetricsRow
from spg_pipe.recipe.data import Dataset
from spg_pipe.recipe.params import MetricParams
from spg_pipe.recipe.protocol import protocol
from spg_pipe.store.extract import Extraction, extract
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens

GRID, SIZE = (28, 28), 448
DIM, DICT_SIZE, K = 1024, 4096, 32
NARROW = 16


class GridTokens(RandomTokens):
    """Random tokens of 28×28 patches, other ones for every image, and a CLS token."""

    def __init__(self, dim: int) -> None:
        self._dim, self._images = dim, 0

    def __call__(self, images: torch.Tensor) -> dict[str, LayerTokens]:
        generator = torch.Generator().manual_seed(self._images)
        self._images += len(images)
        shape = (len(images), GRID[0] * GRID[1], self._dim)
        tokens = torch.randn(shape, generator=generator)
        return {LAYER: LayerTokens(tokens, tokens[:, :1], GRID)}


def write_store(folder: Path, images: int, dim: int) -> FeatureStore:
    """A category of `images`, every second one defective with a mask of a few blobs."""
    rng = np.random.default_rng(0)
    for number in range(images):
        kind, name = ("good", "dent")[number % 2], f"{number:05d}"
        picture = rng.integers(0, 255, (16, 16), np.uint8)
        _png(picture, folder / "raw" / "dots" / kind / f"{name}.png")
        if kind == "dent":
            mask = np.zeros((56, 56), np.uint8)
            for y, x in rng.integers(0, 46, (3, 2)):
                mask[y : y + 6, x : x + 9] = 255
            _png(mask, folder / "raw" / "dots" / "ground_truth" / kind / f"{name}_mask.png")
    manifest = build_manifest(
        Dataset(name="dots", layout="folder", root=folder / "raw", split="all")
    )
    backbone = GridTokens(dim)
    return extract(manifest, backbone, folder / "store.zarr", Extraction(shard_images=128))


def _png(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    big = np.kron(pixels, np.ones((56 // len(pixels) or 1,) * 2, np.uint8))[:56, :56]
    Image.fromarray(big).resize((56, 56), Image.Resampling.NEAREST).save(path)


def made_up(dim: int, dict_size: int) -> tuple[LiteralModel, Detector]:
    """The same random guides as the recipe has them, and as a detector."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(dict_size, dim, generator=generator), dim=1)
    codes = 0.1 + torch.randn(4, dict_size, generator=generator)
    dead = torch.rand(dict_size, generator=generator) < 0.1
    layer = LayerGuides.of_codes(codes, ("cls", "patches"), atoms, dead, None, GRID)
    record = DetectorRecord(
        layers={LAYER: GRID},
        seed=0,
        protocol=protocol("default"),
        detection="cls",
        guides=TrainedGuides(epochs=0),
        rule=Published(image_score="max"),
        auxiliary=Auxiliary(
            dataset="random", split="", images=0, left_out=0, selection=None, synthetic=None
        ),
        store="",
        sae=SaeOrigin(fingerprint="", params=None, tokens_seen={}),
        backbone=RandomTokens.spec,
        licences=(),
        painted_on=(),
        versions={},
    )
    return LiteralModel(atoms, atoms, codes, dead, K), Detector({LAYER: layer}, record)


def pipeline(detector: Detector, store: FeatureStore, folder: Path) -> MetricsRow:
    """Both stages with all that they write; the mean row."""
    scores = score_store(detector, store, folder / "scores")
    evaluation = evaluate_scores(scores, store, MetricParams())
    evaluation.save(folder / "metrics.json")
    return evaluation.table.mean


def recipe(model: LiteralModel, store: FeatureStore) -> dict[str, float]:
    """The published evaluation: one image at a time, all pixels kept."""
    rows = range(len(store))
    with torch.inference_mode():
        maps = [
            model.image_map(image_tokens(store, LAYER, np.array([row])), GRID, SIZE) for row in rows
        ]
    return pixel_metrics(np.stack(maps), store.masks(np.arange(len(store))))


def measure(images: int = 200, rounds: int = 3) -> dict[str, float]:
    """Print seconds of both sides; the ratio and the largest difference of a metric."""
    model, detector = made_up(DIM, DICT_SIZE)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = write_store(folder, images, DIM)
        rows: list[MetricsRow] = []
        reference: dict[str, float] = {}
        work = {
            "ours": lambda: rows.append(pipeline(detector, store, folder)),
            "reference": lambda: reference.update(recipe(model, store)),
        }
        seconds = medians(work, rounds, warm=0)
    row = rows[-1]
    names = ("auroc", "ap", "f1_max")
    difference = max(abs(row.metrics[f"pixel_{name}"] - reference[name]) for name in names)
    for name, value in seconds.items():
        print(f"{name:10} {value:8.2f} s, {1000 * value / images:7.1f} ms an image")
    print(f"accumulator {row.accumulator}; metrics differ by {difference:.1e}")
    return {
        "score_evaluate": seconds["reference"] / seconds["ours"],
        "score_evaluate_difference": difference,
    }


def measure_memory(few: int = 500, many: int = 4000) -> dict[str, float]:
    """Print peaks and seconds of processes; the growth, and the ratio of time an image."""
    peaks, seconds = [], []
    for images in (few, many):
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, "-m", "benchmarks.score_evaluate"]
            command += ["--folder", temporary, "--images", str(images), "--task"]
            subprocess.run([*command, "store"], check=True)
            done = subprocess.run([*command, "run"], check=True, capture_output=True, text=True)
        peak, of_files, took = (float(value) for value in done.stdout.split())
        peaks.append(peak)
        seconds.append(took / images)
        print(
            f"{images} images: {peak:,.0f} MiB private at the peak, {of_files:,.0f} MiB of pages "
            f"of files; {1000 * took / images:.2f} ms each",
            flush=True,
        )
    return {
        "score_memory_growth": peaks[1] / peaks[0] - 1,
        "score_time_growth": seconds[1] / seconds[0] - 1,
    }


def _task(name: str, folder: Path, images: int) -> None:
    if name == "store":
        write_store(folder, images, NARROW)
        return
    start = time.perf_counter()
    with watched() as peaks:
        pipeline(made_up(NARROW, 64)[1], FeatureStore(folder / "store.zarr"), folder)
    print(peaks["RssAnon"], peaks["RssFile"], time.perf_counter() - start)


def main() -> dict[str, float]:
    """Measure by the options of the command line and print the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="0: only memory")
    parser.add_argument("--memory", type=int, nargs=2, default=(500, 4000))
    parser.add_argument("--task", choices=("store", "run"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        _task(options.task, options.folder, options.images)
        return {}
    print(f"{machine()}; {options.images} images, medians of {options.rounds}", flush=True)
    result = measure(options.images, options.rounds) if options.rounds else {}
    result |= measure_memory(*options.memory)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))
    return result


if __name__ == "__main__":
    main()

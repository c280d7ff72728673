"""Extraction in float32 against bfloat16, on the same images and threads, in one run.

    python -m benchmarks.precision [--photos DIR] [--images 48] [--rounds 5] [--engines]

Prints whether this machine has the instructions, and a line for each backbone and way to compute:
images a second, the ratio to float32, how far tokens are from those of float32, and how far those
of an image alone are from those of the same image in a batch (‖difference‖/‖tokens‖, the worst
layer). Without the instructions precision bfloat16 computes in float32, and the ratio is 1;
`--engines` also runs autocast, which then emulates, and OpenVINO, which then uses float32.
"""

import argparse
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.extract_overhead import BACKBONES, BATCH, manifest_of
from benchmarks.timing import machine, medians
from spg_pipe.backbones import load_backbone, precision
from spg_pipe.backbones.base import Backbone, LayerTokens
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.images.preprocess import preprocess
from spg_pipe.images.reading import read_image
from spg_pipe.store.extract import Extraction, extract


def loaded(name: str, engine: str | None = None) -> Backbone:
    """A backbone in float32, in bfloat16 as this machine computes it, or by a named engine."""
    network = load_backbone(name)
    if engine == "float32":
        return network
    if engine is None:
        say = partial(print, " ")
        return precision.with_precision(network, "bfloat16", "cpu", say)
    with mock.patch.object(precision, "engine_of", return_value=engine):
        return precision.with_precision(network, "bfloat16", "cpu", lambda note: None)


def run(backbone: Backbone, manifest: Manifest, folder: Path, workers: int) -> None:
    """One extraction, whose store is thrown away."""
    extract(manifest, backbone, folder / "s.zarr", Extraction(BATCH), workers=workers)
    shutil.rmtree(folder / "s.zarr")


def distance(tokens: dict[str, LayerTokens], exact: dict[str, LayerTokens]) -> float:
    """‖difference‖/‖exact‖ of patch tokens, the worst layer."""
    return max(
        float((tokens[layer].patches - each.patches).norm() / each.patches.norm())
        for layer, each in exact.items()
    )


def batch_of(manifest: Manifest, backbone: Backbone) -> torch.Tensor:
    """The first images as the backbone sees them: (B, 3, S, S)."""
    how = backbone.spec.preprocess
    rows = range(min(BATCH, len(manifest)))
    images = [read_image(manifest.image_path(row), exif=manifest.exif) for row in rows]
    return torch.from_numpy(np.stack([preprocess(image, how) for image in images]))


def compare(name: str, manifest: Manifest, rounds: int, workers: int, *, engines: bool) -> None:
    """Print the lines of one backbone."""
    ways: dict[str, Backbone] = {"float32": loaded(name, "float32"), "bfloat16": loaded(name)}
    if engines:
        ways |= {engine: loaded(name, engine) for engine in ("autocast", "openvino")}
    with tempfile.TemporaryDirectory() as folder:
        work = {
            way: partial(run, backbone, manifest, Path(folder), workers)
            for way, backbone in ways.items()
        }
        seconds = medians(work, rounds)
    images = batch_of(manifest, ways["float32"])
    exact = ways["float32"](images)
    for way, backbone in ways.items():
        together = backbone(images)
        alone = [backbone(image) for image in images.split(1)]
        single = {
            layer: LayerTokens(
                torch.cat([each[layer].patches for each in alone]), value.prefix, value.grid
            )
            for layer, value in together.items()
        }
        off, batched = distance(together, exact), distance(single, together)
        print(
            f"{name}, {way}: {len(manifest) / seconds[way]:.2f} images/s, "
            f"{seconds['float32'] / seconds[way]:.2f}× float32; tokens off by {off:.1e}, "
            f"alone or in a batch by {batched:.1e}",
            flush=True,
        )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", action="store_true")
    given = parser.parse_args()
    workers = os.cpu_count() or 1
    able = precision.has_bfloat16("cpu")
    print(machine())
    print(
        f"bfloat16 instructions: {'yes' if able else 'no'}; precision bfloat16 is "
        f"{precision.computed_by('bfloat16', 'cpu')}; {workers} extraction workers"
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest = manifest_of(given.photos, Path(folder)).spread(given.images)
        for name in BACKBONES:
            compare(name, manifest, given.rounds, workers, engines=given.engines)


if __name__ == "__main__":
    main()

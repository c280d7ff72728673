"""What extraction costs beyond the backbone and the decoding that it cannot avoid.

    python -m benchmarks.extract_overhead [--photos DIR]

With t_f the forward pass alone on batches in memory, on all cores, and t_d decoding and resizing
alone on one core (both seconds an image, in this run), n cores can at best need t_f + t_d/n. The
figure is that bound over what `extract` takes: 1 is perfect.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from spg_pipe.backbones import load_backbone
from spg_pipe.backbones.base import Backbone
from spg_pipe.datasets.build import build_manifest
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.datasets.paint.demo import write_demo
from spg_pipe.images.preprocess import preprocess, resize_mask
from spg_pipe.images.reading import read_image, read_mask
from spg_pipe.recipe.data import Dataset
from spg_pipe.store.extract import Extraction, extract

BACKBONES = ("efficientnet-lite0", "dinov2-vits14-imgfocus")
IMAGES, BATCH, ROUNDS = 96, 8, 5


def seconds_of(backbone: Backbone, manifest: Manifest, folder: Path) -> tuple[float, float, float]:
    """Seconds an image of the forward pass, of decoding, and of the whole extract."""
    spec = backbone.spec.preprocess
    start = time.perf_counter()
    images = []
    for row in range(len(manifest)):
        images.append(preprocess(read_image(manifest.image_path(row), exif=manifest.exif), spec))
        if mask := manifest.mask_path(row):
            resize_mask(read_mask(mask, exif=manifest.exif), spec.size)
    decode = time.perf_counter() - start
    batches = torch.from_numpy(np.stack(images)).split(BATCH)
    start = time.perf_counter()
    for batch in batches:
        backbone(batch)
    forward = time.perf_counter() - start
    start = time.perf_counter()
    extract(
        manifest,
        backbone,
        folder / "overhead.zarr",
        Extraction(batch_images=BATCH),
        workers=os.cpu_count() or 1,
        replace=True,
    )
    whole = time.perf_counter() - start
    (folder / "overhead.zarr" / "shards.json").unlink()  # so that the next round works again
    return tuple(value / len(manifest) for value in (forward, decode, whole))  # type: ignore[return-value]


def overhead(photos: Path | None) -> float:
    """Print a line a backbone; the lowest of their figures.

    Parameters
    ----------
    photos : Path, optional
        A folder of images (as `predict` takes it); default: one of the demo's sets.
    """
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest, cores = manifest_of(photos, folder), os.cpu_count() or 1
        sizes = sorted(set(zip(manifest.table["height"], manifest.table["width"], strict=True)))
        print(f"images: {'given' if photos else 'of the demo'}, {sizes[0]} to {sizes[-1]} pixels")
        for name in BACKBONES:
            backbone = load_backbone(name)
            backbone(torch.zeros(1, 3, *[backbone.spec.preprocess.size] * 2))
            rounds = [seconds_of(backbone, manifest, folder) for _ in range(ROUNDS)]
            forward, decode, whole = (
                statistics.median(values) for values in zip(*rounds, strict=True)
            )
            bound = forward + decode / cores
            figures.append(bound / whole)
            print(
                f"{name}, {len(manifest)} images: forward {forward:.4f} s, decoding "
                f"{decode:.4f} s, extract {whole:.4f} s an image = "
                f"{whole / bound:.3f} × (forward + decoding/{cores})"
            )
    return min(figures)


def manifest_of(photos: Path | None, folder: Path) -> Manifest:
    """A folder of images, or one of the demo's sets, written into `folder`; at most 96."""
    if photos is None:
        write_demo("demo-mvtec", folder / "demo", seed=0)
        manifest = build_manifest(Dataset(name="demo", layout="mvtec", root=folder / "demo"))
    else:
        manifest = build_manifest(
            Dataset(name="photos", layout="mvtec", root=photos)
            if any(photos.glob("*/test"))
            else Dataset(name="photos", layout="folder", root=photos, split="all")
        )
    return manifest.spread(IMAGES)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path)
    print(f"extract_vs_backbone: {overhead(parser.parse_args().photos):.4f}")


if __name__ == "__main__":
    main()

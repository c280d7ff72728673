"""Miniature official layouts for tests: simple textures, painted defects, masks.

`write_mvtec` and `write_visa` write trees that differ from the official releases in nothing but
the number and the size of the images. Import as `from layouts import write_mvtec`.
"""

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from spg_pipe.datasets.build import build_manifest
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.datasets.paint.synthetic import write_synthetic
from spg_pipe.recipe.data import Dataset, SyntheticSet


def scanned(name: str, layout: Any, root: Path, **options: Any) -> Manifest:
    """`build_manifest` of a dataset of this name, layout and root; options of either."""
    of_dataset = {key: options.pop(key) for key in list(options) if key in Dataset.model_fields}
    dataset = Dataset(name=name, layout=layout, root=root, **of_dataset)
    return build_manifest(dataset, **options)


def synthesised(source: Manifest, root: Path, workers: int | None = None, **settings: Any) -> bool:
    """`write_synthetic` of a set in this folder; settings of `SyntheticSet`."""
    made = SyntheticSet(name="set", root=root, source=source.root, **settings)
    return write_synthetic(source, made, workers=workers)


def texture(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A smooth random texture of one colour: (H, W, 3) uint8."""
    height, width = size
    waves = gaussian_filter(rng.standard_normal((height, width)), 3)
    colour = rng.uniform(90, 160, 3)
    pixels = colour + 25 * (waves / waves.std())[:, :, None] + rng.normal(0, 3, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def painted(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The image with an ellipse of another brightness, and its mask: (H, W) uint8 in {0, 1}."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.3, 0.7) * height, rng.uniform(0.3, 0.7) * width
    ry, rx = rng.uniform(0.1, 0.2) * height, rng.uniform(0.1, 0.2) * width
    mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
    shade = rng.choice([-60, 60])
    spoiled = np.where(mask[:, :, None], image.astype(int) + shade, image)
    return spoiled.clip(0, 255).astype(np.uint8), mask.astype(np.uint8)


def write_mvtec(
    root: Path,
    categories: Sequence[str] = ("bottle", "screw"),
    *,
    train: int = 2,
    good: int = 2,
    defects: Sequence[str] = ("crack", "stain"),
    per_defect: int = 1,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Path:
    """Write `<root>/<category>/{train,test,ground_truth}`; returns the root.

    `size` is (height, width); masks hold 0 and 255, as in MVTec AD.
    """
    for category in categories:
        rng = np.random.default_rng([seed, zlib.crc32(category.encode())])
        for split, number in (("train", train), ("test", good)):
            for i in range(number):
                save(texture(size, rng), root / category / split / "good" / f"{i:03d}.png")
        for defect in defects:
            for i in range(per_defect):
                image, mask = painted(texture(size, rng), rng)
                save(image, root / category / "test" / defect / f"{i:03d}.png")
                where = root / category / "ground_truth" / defect
                save(mask * np.uint8(255), where / f"{i:03d}_mask.png")
    return root


def write_visa(
    root: Path,
    categories: Sequence[str] = ("candle", "pcb1"),
    *,
    train: int = 2,
    good: int = 2,
    anomalous: int = 2,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Path:
    """Write `<root>/split_csv/1cls.csv` and `<root>/<category>/Data`; returns the root.

    `size` is (height, width); masks hold 0 and small numbers, as in VisA.
    """
    rows = []
    for category in categories:
        rng = np.random.default_rng([seed, zlib.crc32(category.encode())])
        data = f"{category}/Data"
        for i in range(train + good):
            image = f"{data}/Images/Normal/{i:04d}.JPG"
            save(texture(size, rng), root / image)
            rows.append((category, "train" if i < train else "test", "normal", image, ""))
        for i in range(anomalous):
            image, mask = f"{data}/Images/Anomaly/{i:03d}.JPG", f"{data}/Masks/Anomaly/{i:03d}.png"
            pixels, defect = painted(texture(size, rng), rng)
            save(pixels, root / image)
            save(defect * np.uint8(i % 3 + 1), root / mask)
            rows.append((category, "test", "anomaly", image, mask))
    write_split_file(root, rows)
    return root


def write_split_file(root: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Write `<root>/split_csv/1cls.csv` with VisA's header; returns its path."""
    path = root / "split_csv" / "1cls.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("object", "split", "label", "image", "mask"))
        writer.writerows(rows)
    return path


def save(pixels: np.ndarray, path: Path) -> None:
    """Write an image into a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".JPG" else {}))


def put(root: Path, *names: str) -> Path:
    """Black images of these names below `root`, which is returned."""
    for name in names:
        save(np.zeros((5, 7), np.uint8), root / name)
    return root


def photos(root: Path, *names: str) -> Path:
    """Noisy images of these names, of the size of `put`, below `root`, which is returned."""
    for name in names:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        save(rng.integers(0, 255, (5, 7, 3), dtype=np.uint8), root / name)
    return root

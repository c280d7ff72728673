"""What padding, masks and blanks do to image AUROC, on a set in MVTec's layout.

    python -m benchmarks.views DETECTOR CATEGORY [--images N]

N normal images and N with a defect are judged squashed, and padded to a square with their mirror
image, their mean colour, their border or black. Then a corner (a quarter of the image) or a frame
(45 %) is ignored, as it was photographed and with clutter: in a third of the images noise, in a
third another photograph. Images whose defect is mostly ignored are left out there.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from spg_pipe.detector.model import Detector
from spg_pipe.images.reading import read_image, read_mask
from spg_pipe.predict.predictor import Predictor, load_predictor
from spg_pipe.predict.view import View

FRAME = 0.13
"""Width of the frame, as a share of the side."""
Pad = Callable[[np.ndarray, list[tuple[int, int]]], np.ndarray]
PADDINGS: dict[str, Pad] = {
    "mirror image": partial(np.pad, mode="symmetric"),
    "border": partial(np.pad, mode="edge"),
    "black": partial(np.pad, mode="constant"),
    "mean colour": lambda pixels, margins: np.stack(
        [np.pad(c, margins[:2], constant_values=int(c.mean())) for c in np.moveaxis(pixels, 2, 0)],
        axis=2,
    ),
}


class Image(NamedTuple):
    """A photograph and where its defect is."""

    pixels: np.ndarray
    defect: np.ndarray
    """(H, W) bool."""


def main() -> None:
    """Judge and print the two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=25)
    asked = parser.parse_args()
    predictor = load_predictor(Detector.load(asked.detector), (), None, "cpu", lambda _: None)
    images = _images(asked.folder, asked.images)
    for name, view in {"squashed": None, **PADDINGS}.items():
        _padded(predictor, images, name, view)
    for place in ("corner", "frame"):
        _ignored(predictor, images, place)


def _images(folder: Path, most: int) -> list[Image]:
    kinds = sorted(path for path in (folder / "test").iterdir())
    good = [file for kind in kinds if kind.name == "good" for file in sorted(kind.iterdir())]
    bad = [file for kind in kinds if kind.name != "good" for file in sorted(kind.iterdir())]
    rng, images = np.random.default_rng(0), []
    for files in (good, bad):
        for number in rng.permutation(len(files))[:most].tolist():
            file = files[number]
            pixels = read_image(file, exif=True)
            mask = folder / "ground_truth" / file.parent.name / f"{file.stem}_mask.png"
            none = np.zeros(pixels.shape[:2], bool)
            images.append(Image(pixels, none if files is good else read_mask(mask, exif=False) > 0))
    return images


def _padded(predictor: Predictor, images: list[Image], name: str, pad: Pad | None) -> None:
    labels, scores, defects, values = [], [], [], []
    size = predictor.backbone.spec.preprocess.size
    for pixels, defect in images:
        view = View(defect.shape, "letterbox" if pad else "squash")
        missing = [max(defect.shape) - side for side in defect.shape]
        margins = [(each // 2, each - each // 2) for each in missing]
        kept = view.kept(size)
        judged = predictor.judge([pad(pixels, [*margins, (0, 0)]) if pad else pixels], [kept])
        labels.append(defect.any())
        scores.append(judged.columns["score"][0])
        defects.append(defect.ravel()[::7])
        values.append(view.back(predictor.maps(judged, 0, kept)).ravel()[::7])
    image = roc_auc_score(labels, scores)
    pixel = roc_auc_score(np.concatenate(defects), np.concatenate(values))
    print(f"{name:14} image AUROC {image:.3f}  pixel AUROC {pixel:.3f}", flush=True)


def _ignored(predictor: Predictor, images: list[Image], place: str) -> None:
    labels: list[bool] = []
    scores: dict[str, list[float]] = {}
    size = predictor.backbone.spec.preprocess.size
    for number, (pixels, defect) in enumerate(images):
        ignored = _region(defect.shape, place)
        if defect.any() and defect[~ignored].sum() < defect.sum() / 2:
            continue
        labels.append(bool(defect.any()))
        cluttered = _cluttered(images, number, ignored)
        kept = View(defect.shape, "squash", ignored).kept(size)
        blank = View(defect.shape, "squash", ignored, blank=True).framed(cluttered)
        for name, shown, counts in (
            ("as photographed", pixels, None),
            ("as photographed, mask", pixels, kept),
            ("clutter", cluttered, None),
            ("clutter, mask", cluttered, kept),
            ("clutter, mask, blank", blank, kept),
        ):
            score = float(predictor.judge([shown], [counts]).columns["score"][0])
            scores.setdefault(name, []).append(score)
    for name, values in scores.items():
        auroc = roc_auc_score(labels, values)
        print(f"{place:7} {name:22} image AUROC {auroc:.3f} of {len(labels)}", flush=True)


def _region(shape: tuple[int, int], place: str) -> np.ndarray:
    height, width = shape
    ignored = np.zeros(shape, bool)
    if place == "corner":
        ignored[height // 2 :, width // 2 :] = True
        return ignored
    rows, columns = (slice(int(side * FRAME), int(side * (1 - FRAME))) for side in shape)
    ignored[:] = True
    ignored[rows, columns] = False
    return ignored


def _cluttered(images: list[Image], number: int, ignored: np.ndarray) -> np.ndarray:
    pixels, other = images[number].pixels, images[(number * 7 + 3) % len(images)].pixels
    filled, (height, width) = pixels.copy(), ignored.shape
    if number % 3 == 0:
        rows = np.arange(height) * other.shape[0] // height
        columns = np.arange(width) * other.shape[1] // width
        filled[ignored] = other[rows[:, None], columns][ignored]
    elif number % 3 == 1:
        noise = np.random.default_rng(number).integers(0, 256, pixels.shape)
        filled[ignored] = noise.astype(pixels.dtype)[ignored]
    return filled


if __name__ == "__main__":
    main()

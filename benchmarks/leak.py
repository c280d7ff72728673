"""How much an ignored region still changes what is said of the rest of an image.

    python -m benchmarks.leak DETECTOR IMAGES [--images N]

In each of N photographs a square of 5, 20 and 50 % of the image is ignored, at a place drawn by
chance, and then filled with something else: noise, or the same place of another photograph. Nothing
that is kept has changed, so that every difference is a leak: through the receptive field of a
convolution, through a ViT's attention and through CLS, which sees the whole image. A row is a share
and a filling:

    map      |Δ log odds| of the kept pixels in standard deviations of the image's own map: its
             largest value, its mean, and its mean over pixels farther than 1/8 of the side from the
             region; each the median over images
    score    |Δ score| in standard deviations of the scores of the N images as they are, and the
             same without the term of CLS (`detection`)

Each twice: with the mask, and without one, as it would be if the region counted.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from spg_pipe.decision.kept import Kept
from spg_pipe.decision.model import coarse_maps, coarse_shares
from spg_pipe.detector.model import Detector
from spg_pipe.images.reading import read_image
from spg_pipe.predict.predictor import Predictor, load_predictor
from spg_pipe.predict.view import View

SHARES = (0.05, 0.2, 0.5)
FILLINGS = ("noise", "other photograph")
FAR = 8
"""Part of the side."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=30)
    asked = parser.parse_args()
    predictor = load_predictor(Detector.load(asked.detector), (), None, "cpu", lambda _: None)
    files = sorted(path for path in asked.folder.rglob("*") if path.suffix in (".png", ".jpg"))
    chosen = np.linspace(0, len(files) - 1, min(asked.images, len(files))).round().astype(int)
    photographs = [read_image(files[number], exif=True) for number in chosen]
    scores = [predictor.judge([each]).columns["score"][0] for each in photographs]
    spread = float(np.std(scores))
    print(
        f"{len(photographs)} photographs, deviation of their scores {spread:.3f}\n\n"
        "| ignored | filled with | mask | map: largest | mean | mean, far | score | without CLS |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for share in SHARES:
        for filling in FILLINGS:
            leaks = np.array(list(_leaks(predictor, photographs, share, filling)))
            for masked, values in zip(("yes", "no"), np.median(leaks, axis=0), strict=True):
                values[3:] /= spread
                shown = " | ".join(f"{value:.3f}" for value in values)
                print(f"| {share:.0%} | {filling} | {masked} | {shown} |", flush=True)


def _leaks(
    predictor: Predictor, photographs: list[np.ndarray], share: float, filling: str
) -> Iterator[np.ndarray]:
    """Of each image (2, 5): with and without a mask; the map's three figures, the score's two."""
    for number, pixels in enumerate(photographs):
        rng = np.random.default_rng([number, int(share * 100)])
        ignored = _square(pixels.shape[:2], share, rng)
        other = photographs[(number + 1) % len(photographs)]
        filled = pixels.copy()
        if filling == "noise":
            noise = rng.integers(0, 256, pixels.shape).astype(pixels.dtype)
            filled[ignored] = noise[ignored]
        else:
            rows, columns = (
                np.arange(side) * theirs // side
                for side, theirs in zip(pixels.shape[:2], other.shape[:2], strict=True)
            )
            filled[ignored] = other[rows[:, None], columns][ignored]
        yield np.stack(
            [_difference(predictor, pixels, filled, ignored, masked) for masked in (True, False)]
        )


def _square(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool: a rectangle of the image's own shape and of a share of its area."""
    sides = [round(side * share**0.5) for side in shape]
    top, left = (rng.integers(0, s - own + 1) for s, own in zip(shape, sides, strict=True))
    square = np.zeros(shape, bool)
    square[top : top + sides[0], left : left + sides[1]] = True
    return square


def _difference(
    predictor: Predictor, pixels: np.ndarray, filled: np.ndarray, ignored: np.ndarray, masked: bool
) -> np.ndarray:
    size = predictor.backbone.spec.preprocess.size
    shares = View(pixels.shape[:2], "squash", ignored).kept(size)
    kept = Kept.of([shares])
    assert kept is not None
    before, after = (
        predictor.judge([each], [shares] if masked else []) for each in (pixels, filled)
    )
    maps = [
        coarse_maps(each.patches, size, kept if masked else None)[0] for each in (before, after)
    ]
    counts = coarse_shares(kept, size)[0] == 1
    moved = np.abs(maps[0] - maps[1])[counts] / maps[0][counts].std()
    far = distance_transform_edt(counts)[counts] > counts.shape[0] / FAR
    scores = [each.columns["score"][0] for each in (before, after)]
    cls = [each.columns.get("share_detection", np.zeros(1))[0] for each in (before, after)]
    score = scores[0] - scores[1]
    beyond = moved[far].mean() if far.any() else np.nan
    without = score - (cls[0] - cls[1])
    return np.array([moved.max(), moved.mean(), beyond, abs(score), abs(without)])


if __name__ == "__main__":
    main()

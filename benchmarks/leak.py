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
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from spg_pipe.bank.normal_patches import Grids, Tokens
from spg_pipe.decision.kept import Kept
from spg_pipe.decision.model import coarse_maps, coarse_shares
from spg_pipe.detector.judge import Judged, judge
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
    seen = [predictor.tokens([each]) for each in photographs]
    spread = float(np.std([_judged(predictor, each, None).columns["score"][0] for each in seen]))
    print(
        f"{len(photographs)} photographs, deviation of their scores {spread:.3f}\n\n"
        "| ignored | filled with | mask | map: largest | mean | mean, far | score | without CLS |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for share in SHARES:
        for filling in FILLINGS:
            filled = (_filled(photographs, each, share, filling) for each in range(len(seen)))
            leaks = np.array(
                [
                    _leaks(predictor, before, pixels, ignored)
                    for before, (pixels, ignored) in zip(seen, filled, strict=True)
                ]
            )
            for masked, values in zip(("yes", "no"), np.median(leaks, axis=0), strict=True):
                values[3:] /= spread
                shown = " | ".join(f"{value:.3f}" for value in values)
                print(f"| {share:.0%} | {filling} | {masked} | {shown} |", flush=True)


def _judged(predictor: Predictor, seen: tuple[Tokens, Grids], kept: Kept | None) -> Judged:
    detector, spec = predictor.detector, predictor.backbone.spec
    return judge(detector, *seen, spec, detector.record.rule, kept)


def _filled(
    photographs: list[np.ndarray], number: int, share: float, filling: str
) -> tuple[np.ndarray, np.ndarray]:
    """A photograph with a region filled, and (H, W) bool the region."""
    pixels, other = photographs[number], photographs[(number + 1) % len(photographs)]
    rng = np.random.default_rng([number, int(share * 100)])
    ignored, filled = _square(pixels.shape[:2], share, rng), pixels.copy()
    if filling == "noise":
        filled[ignored] = rng.integers(0, 256, pixels.shape).astype(pixels.dtype)[ignored]
    else:
        rows, columns = (
            np.arange(side) * theirs // side
            for side, theirs in zip(pixels.shape[:2], other.shape[:2], strict=True)
        )
        filled[ignored] = other[rows[:, None], columns][ignored]
    return filled, ignored


def _square(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool: a rectangle of the image's own shape and of a share of its area."""
    sides = [round(side * share**0.5) for side in shape]
    top, left = (rng.integers(0, s - own + 1) for s, own in zip(shape, sides, strict=True))
    square = np.zeros(shape, bool)
    square[top : top + sides[0], left : left + sides[1]] = True
    return square


def _leaks(
    predictor: Predictor, before: tuple[Tokens, Grids], filled: np.ndarray, ignored: np.ndarray
) -> np.ndarray:
    """Of an image (2, 5): with and without a mask; the map's three figures, the score's two."""
    size, after = predictor.backbone.spec.preprocess.size, predictor.tokens([filled])
    kept = Kept.of([View((ignored.shape[0], ignored.shape[1]), "squash", ignored).kept(size)])
    assert kept is not None
    counts = coarse_shares(kept, size)[0] == 1
    far = distance_transform_edt(counts)[counts] > counts.shape[0] / FAR
    rows = []
    for mask in (kept, None):
        judged = [_judged(predictor, each, mask) for each in (before, after)]
        maps = [coarse_maps(each.patches, size, mask)[0] for each in judged]
        moved = np.abs(maps[0] - maps[1])[counts] / maps[0][counts].std()
        score, cls = (
            np.subtract(*(each.columns.get(name, np.zeros(1))[0] for each in judged))
            for name in ("score", "share_detection")
        )
        beyond = moved[far].mean() if far.any() else np.nan
        rows.append([moved.max(), moved.mean(), beyond, abs(score), abs(score - cls)])
    return np.array(rows)


if __name__ == "__main__":
    main()

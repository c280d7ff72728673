"""Defects of `synthesise`: foreign texture, with the mask of what has visibly changed.

Perlin-textured spots (as in DRAEM), pasted pieces (as in CutPaste and NSA) and scars. Painters work
in a window of the image and in units of the image's own range of values, so that a 12-bit image in
a 16-bit file gets defects of its own contrast. Sizes are shares of the shorter side: images of any
size become S×S before a backbone sees them.
"""

import numpy as np
from scipy import ndimage

from spg_pipe.datasets.paint.canvas import (
    Canvas,
    Paint,
    bilinear,
    blended,
    on_image,
    random_box,
    turned,
)

VISIBLE = 0.06
"""Change, of an image's range of values, from which a pixel counts as changed."""
LEAST_AREA = 2e-4
"""Share of an image that a defect covers at least: about 5×5 pixels at 336."""
LEAST_SIDE = 16
"""Pixels: a smaller image has no room for a defect."""
_LEAST_PART = 0.6
"""Share of what a painter touched that is visible at least: else the mask would be tatters."""
_TRIES = 16
"""Draws until a defect is visible: a piece of a plain ground pasted on it is not."""
_LEAST_RANGE = 1 / 8
"""Of the type's range: what an image's own range is taken for at least, so that a blank image does
not get defects of one grey level."""


def canvas_of(levels: np.ndarray, other: Canvas | None = None) -> Canvas:
    """An image (H, W, 3), uint8 or uint16, with what the painters need to know of it."""
    low, high = float(levels.min()), float(levels.max())
    span = max(high - low, _LEAST_RANGE * np.iinfo(levels.dtype).max)
    grey = all(np.array_equal(levels[..., 0], levels[..., c]) for c in (1, 2))
    return Canvas(levels, low, span, grey, other)


def paint(image: Canvas, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put one defect on an image at least `LEAST_SIDE` pixels high and wide.

    The painted image, (H, W, 3) of the same dtype, and its mask, (H, W) bool: where the change is
    visible on average over a few pixels (`VISIBLE`), never empty. Images differ there and nowhere
    else.
    """
    for _ in range(_TRIES):
        defect = PAINTERS[kind](image, rng)
        window, changed = _applied(image, defect)
        least = max(LEAST_AREA * image.levels[..., 0].size, _LEAST_PART * (defect.alpha > 0).sum())
        if changed.sum() >= least:
            return on_image(image, defect.box, window, changed)
    # A shift towards the other end of the type's range is visible on any image.
    before = image.levels[defect.box]
    shift = np.where(before <= np.iinfo(before.dtype).max / 2, 0.4, -0.4)
    shifted = Paint(defect.box, image.units(defect.box) + shift, (defect.alpha > 0).astype(float))
    return on_image(image, defect.box, *_applied(image, shifted))


def _applied(image: Canvas, defect: Paint) -> tuple[np.ndarray, np.ndarray]:
    """The painted window in the image's type, and where it has visibly changed."""
    before = image.levels[defect.box]
    top = np.iinfo(before.dtype).max
    levels = np.rint(blended(image, defect) * image.span + image.low)
    after = levels.clip(0, top).astype(before.dtype)
    difference = np.abs(after.astype(np.float32) - before).max(axis=2) / image.span
    # Averaged, so that a piece of like texture is not a mask of scattered pixels.
    width = max(3, image.side // 100)
    changed = (ndimage.uniform_filter(difference, width) >= VISIBLE) & (difference > 0)
    return np.where(changed[..., None], after, before), changed


def _perlin_spot(image: Canvas, rng: np.random.Generator) -> Paint:
    """A spot of irregular outline, filled with a foreign texture (DRAEM, arXiv 2108.07610, §3.2).

    There the noise covers the whole image; here a window of random size, for small defects, too.
    """
    box = random_box(image, max(8, round(image.side * _log_uniform(rng, 0.08, 0.45))), rng)
    shape = _shape(box)
    cells = (int(rng.integers(2, 7)), int(rng.integers(2, 7)))
    y, x = (np.linspace(-1, 1, n) for n in shape)
    radius = np.hypot(y[:, None], x[None, :])
    # The noise sinks towards the window's border, so that no outline is cut off straight.
    relief = perlin(shape, cells, rng) - radius**2
    inside = relief - np.quantile(relief[radius < 1], 1 - rng.uniform(0.2, 0.6))
    alpha = rng.uniform(0.3, 1.0) * (inside / rng.uniform(0.02, 0.15)).clip(0, 1) * (radius < 1)
    return Paint(box, _texture(image.other or image, shape, rng), alpha)


def _cut_paste(image: Canvas, rng: np.random.Generator) -> Paint:
    """A piece from elsewhere, jittered and turned (CutPaste, arXiv 2104.04015; NSA, 2109.15222)."""
    area, ratio = _log_uniform(rng, 0.002, 0.1), _log_uniform(rng, 1 / 3, 3)
    return _pasted(image, np.sqrt(area * ratio), np.sqrt(area / ratio), rng)


def _scar(image: Canvas, rng: np.random.Generator) -> Paint:
    """A long thin piece, as CutPaste's scars."""
    length, width = _log_uniform(rng, 0.1, 0.5), _log_uniform(rng, 0.01, 0.04)
    return _pasted(image, length, width, rng)


PAINTERS = {"perlin": _perlin_spot, "cut_paste": _cut_paste, "scar": _scar}
"""Kind of defect → its painter."""


def _pasted(image: Canvas, length: float, width: float, rng: np.random.Generator) -> Paint:
    """A turned rectangle or ellipse of `length` and `width` shorter sides, from either image."""
    long, short = max(4.0, length * image.side), max(2.0, width * image.side)
    box = random_box(image, int(np.ceil(np.hypot(long, short))) + 2, rng)
    shape = _shape(box)
    along, across = turned(shape, rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.5:
        inside = np.minimum(long / 2 - np.abs(along), short / 2 - np.abs(across))
    else:
        inside = (1 - np.hypot(2 * along / long, 2 * across / short)) * min(long, short) / 2
    alpha = (inside / rng.uniform(0.5, max(1.0, 0.3 * min(long, short)))).clip(0, 1)
    source = image if rng.random() < 0.5 else image.other or image
    piece = _sample(source, shape, rng, zoom=_log_uniform(rng, 0.7, 1.4))
    if rng.random() < 0.5:
        # The ground's level under the piece's detail: about what Poisson blending does.
        blur = (max(1.0, min(long, short) / 2),) * 2 + (0,)
        ground = image.units(box)
        piece += ndimage.gaussian_filter(ground, blur) - ndimage.gaussian_filter(piece, blur)
    middle = piece.mean(axis=(0, 1))
    colour = rng.uniform(-0.25, 0.25) + rng.uniform(-0.1, 0.1, 3)
    return Paint(box, middle + rng.uniform(0.6, 1.4) * (piece - middle) + colour, alpha)


def _texture(other: Canvas, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A foreign texture, (h, w, 3): another image strongly changed, or noise of two colours."""
    if rng.random() < 0.5:
        piece = _sample(other, shape, rng, zoom=_log_uniform(rng, 0.5, 3))
        piece = piece.clip(0, 1)[..., rng.permutation(3)] ** _log_uniform(rng, 0.4, 2.5)
        return np.asarray(1 - piece if rng.random() < 0.5 else piece)
    cells = tuple(int(np.ceil(_log_uniform(rng, 1, min(24, n)))) for n in shape)
    mix = (0.5 + perlin(shape, (cells[0], cells[1]), rng))[..., None].clip(0, 1)
    first, second = rng.uniform(0, 1, (2, 3))
    return np.asarray(mix * first + (1 - mix) * second)


def _sample(
    canvas: Canvas, shape: tuple[int, int], rng: np.random.Generator, *, zoom: float
) -> np.ndarray:
    """A turned and enlarged part of an image, (h, w, 3) in its units, mirrored beyond its edges."""
    along, across = turned(shape, rng.uniform(0, 2 * np.pi))
    height, width = canvas.levels.shape[:2]
    at = np.stack([along / zoom + rng.uniform(0, height), across / zoom + rng.uniform(0, width)])
    return canvas.scaled(bilinear(canvas.levels, at, "mirror"))


def _shape(box: tuple[slice, slice]) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def perlin(shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise between random gradients on a lattice (Perlin, "Improving noise", 2002).

    `shape` is (H, W) in pixels, `cells` the hills and valleys along each axis. (H, W) float64 in
    [-1, 1], 0 at the lattice's corners.
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    gradients = np.sin(angles), np.cos(angles)
    y, x = (np.arange(n) * (c / n) for n, c in zip(shape, cells, strict=True))
    row, column = y.astype(int), x.astype(int)
    along, across = (y - row)[:, None], (x - column)[None, :]

    def corner(down: int, right: int) -> np.ndarray:
        at = np.ix_(row + down, column + right)
        return gradients[0][at] * (along - down) + gradients[1][at] * (across - right)

    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (along, across))
    top = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    bottom = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    return np.asarray(np.sqrt(2) * (top * (1 - fade_y) + bottom * fade_y))

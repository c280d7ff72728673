"""Whether an exported graph says what `predict` says, on made-up images."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from spg_pipe.deploy.formats import Judge
from spg_pipe.errors import SpgError
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.view import View

MOST = 1e-4
"""Of maps, and of scores where these are below 1 (above: of their size)."""


class Agreement(NamedTuple):
    """How far a graph is from `predict` at most."""

    images: int
    map: float
    score: float


def predicted(predictor: Predictor, image: np.ndarray) -> tuple[np.ndarray, float]:
    """An image's map (H, W) and score as `predict` gives them."""
    judged = predictor.judge([image])
    view = View((image.shape[0], image.shape[1]))
    return view.back(predictor.maps(judged, 0)), float(judged.columns["score"][0])


def made_up(size: int) -> Iterator[np.ndarray]:
    """Images (H, W, 3) uint8 of several shapes: smaller than S, equal, larger, flat, upright."""
    random = np.random.default_rng(0)
    half, large = max(1, size // 2), 2 * size + 3
    for height, width in [(size, size), (half, large), (large, half), (1, 40), (37, 1)]:
        cells = random.integers(0, 256, (1 + height // 24, 1 + width // 24, 3), dtype=np.uint8)
        smooth = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        noise = random.integers(-8, 9, (height, width, 3))
        yield np.clip(np.asarray(smooth, np.int64) + noise, 0, 255).astype(np.uint8)


def require_agreement(
    judge: Judge, expected: Sequence[tuple[np.ndarray, float]], size: int, what: str
) -> Agreement:
    """Hold a graph to what `predicted` says of the `made_up` images.

    An `SpgError` if a map or a score differs by more than `MOST`.
    """
    maps, scores = [0.0], [0.0]
    for image, (anomaly_map, score) in zip(made_up(size), expected, strict=True):
        found, given = judge(image)[:2]
        if found.shape != anomaly_map.shape:
            raise SpgError(f"{what} gives a map of {found.shape}, expected {anomaly_map.shape}.")
        maps.append(float(np.abs(found - anomaly_map).max()))
        scores.append(abs(float(given[0]) - score) / max(1.0, abs(score)))
    agreement = Agreement(len(expected), float(np.max(maps)), float(np.max(scores)))
    if not (agreement.map <= MOST and agreement.score <= MOST):  # also catches NaN
        raise SpgError(
            f"{what} differs from `predict` by {agreement.map:.2g} in maps and "
            f"{agreement.score:.2g} in scores, and at most {MOST:g} is allowed. Nothing was "
            "written. Update the runtime, or leave this format out."
        )
    return agreement

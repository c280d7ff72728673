"""Whether an exported graph says what `predict` says, on made-up images."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from spg_pipe.artefacts.record import Count, Record
from spg_pipe.deploy.formats import Judge
from spg_pipe.errors import SpgError
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.view import View

MOST = 1e-4
"""Of maps, and of scores where these are below 1 (above: of their size)."""


class Agreement(Record):
    """How far a graph is from `predict` at most."""

    images: Count
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
    in_maps, in_scores = [0.0], [0.0]
    for image, (anomaly_map, score) in zip(made_up(size), expected, strict=True):
        graph_map, graph_score = judge(image)[:2]
        if graph_map.shape != anomaly_map.shape:
            raise SpgError(
                f"{what} gives a map of {graph_map.shape}, expected {anomaly_map.shape}. Nothing "
                "was written. Update the runtime, or leave this format out."
            )
        in_maps.append(float(np.abs(graph_map - anomaly_map).max()))
        in_scores.append(abs(float(graph_score[0]) - score) / max(1.0, abs(score)))
    of_maps, of_scores = float(np.max(in_maps)), float(np.max(in_scores))
    if not (of_maps <= MOST and of_scores <= MOST):  # also catches NaN
        raise SpgError(
            f"{what} differs from `predict` by {of_maps:.2g} in maps and {of_scores:.2g} in "
            f"scores, and at most {MOST:g} is allowed. Nothing was written. Update the runtime, or "
            "leave this format out."
        )
    return Agreement(images=len(expected), map=of_maps, score=of_scores)

"""What `predict` writes: scores.csv, a row per image, and a heat map of each in overlays/."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.decision.heat_maps import eight_bit, overlay
from spg_pipe.metrics import write_csv
from spg_pipe.predict.files import SCORES, check_out, whole_result
from spg_pipe.predict.images import Images
from spg_pipe.predict.judge import HEADER, JudgedImage, Prediction, as_row


def write_results(
    judged: Iterable[JudgedImage], images: Images, out: Path, shown: tuple[float, float]
) -> list[Prediction]:
    """Write scores.csv and overlays/ of all images below `out`.

    Files of an earlier result are replaced when all images are done, never before.

    Parameters
    ----------
    shown : (low, high)
        Values of the maps that get the darkest and the brightest colour.

    Raises
    ------
    SpgError
        If a result would replace what is not one. After this and any other error `out` is as it
        was.
    """
    check_out(out, images.overlays, HEADER)
    predictions: list[Prediction] = []
    with whole_result(out, images.overlays) as folder:
        for prediction, pixels, anomaly_map in judged:
            write_bytes(folder / prediction.overlay, _heat_map(pixels, anomaly_map, shown))
            predictions.append(prediction)
        write_csv(folder / SCORES, [as_row(prediction) for prediction in predictions])
    return predictions


def _heat_map(pixels: np.ndarray, anomaly_map: np.ndarray, shown: tuple[float, float]) -> bytes:
    """A PNG file."""
    from PIL import Image

    low, high = shown
    data = io.BytesIO()
    picture = overlay(eight_bit(pixels), anomaly_map, low=low, high=high)
    Image.fromarray(picture).save(data, format="PNG")
    return data.getvalue()

"""What `predict` writes: scores.csv, a row per image, and a heat map of each in overlays/."""

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.decision.heat_maps import eight_bit, overlay
from spg_pipe.metrics import write_csv
from spg_pipe.predict.files import SCORES, whole_result
from spg_pipe.predict.images import Images
from spg_pipe.predict.judge import JudgedImage, Prediction, as_row


def write_results(
    judged: Iterable[JudgedImage], images: Images, out: Path, shown: tuple[float, float]
) -> list[Prediction]:
    """Write scores.csv and overlays/ of all images below `out`.

    Files of an earlier result are replaced when all images are done, never before; after an error
    `out` is as it was.

    Parameters
    ----------
    shown : (low, high)
        Values of the maps that get the darkest and the brightest colour.
    """
    predictions: list[Prediction] = []
    with whole_result(out, images.overlays) as folder:
        for prediction, pixels, anomaly_map in judged:
            data = io.BytesIO()
            low, high = shown
            picture = overlay(eight_bit(pixels), anomaly_map, low=low, high=high)
            Image.fromarray(picture).save(data, format="PNG")
            write_bytes(folder / prediction.overlay, data.getvalue())
            predictions.append(prediction)
        write_csv(folder / SCORES, [as_row(prediction) for prediction in predictions])
    return predictions

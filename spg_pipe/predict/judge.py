"""Images → predictions and anomaly maps, one image at a time → scores.csv and heat maps."""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.bank.few_shot import KNOWN
from spg_pipe.bank.normal_patches import BATCH, Progress
from spg_pipe.datasets.walk import SCORES
from spg_pipe.decision.heat_maps import eight_bit, overlay
from spg_pipe.decision.maps import anomaly_maps, resize_maps
from spg_pipe.errors import SpgError, counted, naming, told
from spg_pipe.explain.explanation import Explanation
from spg_pipe.explain.writer import Explained, ExplanationWriter, writing
from spg_pipe.images.files import utf8_name
from spg_pipe.images.reading import read_image
from spg_pipe.metrics import write_csv
from spg_pipe.predict.files import PREDICTIONS, whole_result
from spg_pipe.predict.images import Images
from spg_pipe.predict.predictor import Predictor


@dataclass(frozen=True)
class Prediction:
    """The result for one image."""

    path: str
    """Of the image, relative to the folder that was given."""
    score: float
    """Image score of the detector's recipe; higher is more anomalous. Not a probability."""
    height: int
    """Pixels of the original image, as the width."""
    width: int
    peak_row: int
    """Row of the map's maximum, pixels of the original image."""
    peak_column: int
    overlay: str
    """File of the heat map, relative to the output folder; empty if it could not be written."""
    protocol: str
    """The method's protocol (docs/method.md §5)."""
    parts: dict[str, str | float | bool]
    """What the score is made of: the other columns of `Judged`. Where normal images of the target
    were used also `supervision`, how many, and `among_normals`: the image is one of these itself,
    so that the bank finds it normal."""


def as_row(prediction: Prediction) -> dict[str, str | int | float | bool]:
    """A prediction as one flat row."""
    row = asdict(prediction)
    return row | row.pop("parts")


class JudgedImage(NamedTuple):
    """An image with what was found in it."""

    prediction: Prediction
    pixels: np.ndarray
    """(H, W, 3) uint8 or uint16, as `read_image` gives it."""
    anomaly_map: np.ndarray
    """(H, W) float32 in [0, 1]."""
    explanation: Explanation | None
    """Of its batch, if asked for."""
    number: int
    """In its batch."""


def judge_images(
    predictor: Predictor,
    images: Images,
    *,
    white: int | None = None,
    batch_images: int = BATCH,
    explained: bool = False,
    progress: Progress | None = None,
) -> Iterator[JudgedImage]:
    """Judge images, each on its own, `batch_images` in a forward pass; tiled ones come one by one.

    Parameters
    ----------
    white : int, optional
        See `read_image`.
    batch_images : int
        Images of any sizes; each is preprocessed to the detector's image size.
    explained : bool
        Take the scores apart.
    progress : callable (done, total), optional
        Called after every batch.

    Raises
    ------
    SpgError
        If an image cannot be read, or a bank alone is to be explained.
    """
    spec, protocol = predictor.backbone.spec, predictor.detector.record.protocol
    step = max(1, batch_images // spec.inputs_per_image)
    overlays = images.overlays
    for start in range(0, len(images.paths), step):
        paths = images.paths[start : start + step]
        exif = protocol.exif_of_own_images
        batch = [read_image(path, exif=exif, white=white) for path in paths]
        explanation = None
        if explained:
            judged, explanation = predictor.explain(batch)
        else:
            judged = predictor.judge(batch)
        size, log_odds = spec.preprocess.size, predictor.log_odds
        maps = anomaly_maps(judged.patches, size, log_odds=log_odds)
        for number, (path, pixels) in enumerate(zip(paths, batch, strict=True)):
            anomaly_map = resize_maps(maps[number][None], pixels.shape[:2])[0]
            overlay_file = overlays[start + number]
            columns = {name: each[number] for name, each in judged.columns.items()}
            prediction = _prediction(
                predictor, images.name(path), anomaly_map, overlay_file, columns
            )
            yield JudgedImage(prediction, pixels, anomaly_map, explanation, number)
        if progress:
            progress(start + len(paths), len(images.paths))


def _prediction(
    predictor: Predictor,
    path: str,
    anomaly_map: np.ndarray,
    overlay_file: Path,
    columns: Mapping[str, np.generic],
) -> Prediction:
    """What is said of an image, from its map (H, W) and its values of `Judged.columns`."""
    height, width = anomaly_map.shape
    row, column = np.unravel_index(int(anomaly_map.argmax()), (height, width))
    parts: dict[str, str | float | bool] = {name: float(each) for name, each in columns.items()}
    score = float(parts.pop("score"))
    if predictor.bank:
        known = bool(parts.pop(KNOWN, False))
        parts |= {"supervision": predictor.supervision, KNOWN: known}
    return Prediction(
        path=path,
        score=score,
        height=height,
        width=width,
        peak_row=int(row),
        peak_column=int(column),
        overlay=utf8_name(overlay_file.as_posix()),
        protocol=predictor.detector.record.protocol.name,
        parts=parts,
    )


def write_results(
    judged: Iterable[JudgedImage], images: Images, out: Path, shown: tuple[float, float]
) -> list[Prediction]:
    """Write scores.csv and overlays/ of all images below `out`, and explanations where there are.

    Files of an earlier result are replaced when all images are done, never before; after an error
    `out` is as it was. But a heat map that cannot be written costs no score: an `SpgError` tells of
    it when scores.csv is there.

    Parameters
    ----------
    shown : (low, high)
        Values of the maps that get the darkest and the brightest colour.
    """
    predictions: list[Prediction] = []
    faults: list[OSError] = []
    low, high = shown
    with ExitStack() as stack:
        folder = stack.enter_context(whole_result(out, images.files(PREDICTIONS)))
        writer: ExplanationWriter | None = None
        for number, each in enumerate(judged):
            file, prediction = images.overlays[number], each.prediction
            data = io.BytesIO()
            picture = overlay(eight_bit(each.pixels), each.anomaly_map, low=low, high=high)
            Image.fromarray(picture).save(data, format="PNG")
            try:
                with naming(out / file, folder.parent):
                    write_bytes(folder / file, data.getvalue())
            except OSError as error:
                faults.append(error)
                prediction = replace(prediction, overlay="")
            predictions.append(prediction)
            if (why := as_explained(each, images.explained[number])) is not None:
                writer = writer or stack.enter_context(writing(folder, shown))
                writer.add(why)
        write_csv(folder / SCORES, [as_row(prediction) for prediction in predictions])
    faults += writer.faults if writer else []
    if faults:
        raise SpgError(
            f"{out / SCORES} has the scores of all {counted(len(predictions), 'image')}, but "
            f"{counted(len(faults), 'picture')} could not be written. {told(faults[0])}"
        )
    return predictions


def as_explained(judged: JudgedImage, file: Path) -> Explained | None:
    """What its explanation's writer takes, if it has one; `file` is of its picture."""
    if judged.explanation is None:
        return None
    parts = judged.prediction.parts
    return Explained(
        judged.prediction.path,
        judged.explanation,
        judged.number,
        file,
        lambda: (eight_bit(judged.pixels), judged.anomaly_map),
        {name: parts[name] for name in ("supervision", KNOWN) if name in parts},
    )

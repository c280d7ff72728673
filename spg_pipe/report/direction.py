"""The gallery of a direction: every image of its target, judged by the first seed's detector."""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from spg_pipe.datasets.manifest import (
    LABEL_ANOMALOUS,
    LABEL_NORMAL,
    LABEL_UNKNOWN,
    MaskState,
)
from spg_pipe.datasets.names import GOOD
from spg_pipe.decision.maps import shown_range
from spg_pipe.errors import SpgError
from spg_pipe.images.reading import read_image
from spg_pipe.metrics import MetricsTable
from spg_pipe.recipe.machine import cpu_workers
from spg_pipe.report.gallery import GalleryImage, Label, Threshold
from spg_pipe.report.inputs import DirectionRuns
from spg_pipe.report.page import signed
from spg_pipe.report.pictures import MAP_LONGEST, ImageFiles, write_pictures

MOST = 4000
"""Images of a gallery: a browser holds them all."""
_CHUNK = 256
_LABELS: dict[int, Label] = {
    LABEL_NORMAL: "normal",
    LABEL_ANOMALOUS: "anomalous",
    LABEL_UNKNOWN: "unknown",
}
SHARES = {
    "share_map_top": "Part: highest part of the map",
    "share_detection": "Part: guides of the whole image",
    "share_self_distance": "Part: self-distance of the image",
    "share_bank": "Part: unlike the normal images of the bank",
}
"""Column of scores.parquet → its name on an image's page; the others follow under their own."""


FilesOfImages = dict[int, ImageFiles]
"""Row of the scores' table → the files of its image."""


def facts_of_parts(score: float, parts: Mapping[str, float]) -> list[tuple[str, str]]:
    """Rows of an image's page: what its score is made of; of shares also the constant beside them.

    Parameters
    ----------
    parts : mapping
        `share_…`, or `score_…` of the published rule.
    """
    facts = [(SHARES.get(name, name), signed(value)) for name, value in parts.items()]
    shares = [value for name, value in parts.items() if name.startswith("share_")]
    return [*facts, ("Part: constant", signed(score - sum(shares)))] if shares else facts


def rows_shown(table: pd.DataFrame, wanted: set[int]) -> list[int]:
    """Rows of a gallery: by category, the highest score first.

    Of more than `MOST` images evenly spaced ones of this order, and the wanted.
    """
    order = table.assign(group=pd.factorize(table["category"])[0])
    order = order.sort_values(["group", "score"], ascending=[True, False], kind="stable")
    rows = [int(row) for row in order.index]
    if len(rows) <= MOST:
        return rows
    spaced = {rows[number] for number in np.linspace(0, len(rows) - 1, MOST).astype(int)}
    return [row for row in rows if row in spaced | wanted]


def write_images(
    way: DirectionRuns, rows: list[int], folder: Path, progress: Callable[[], None]
) -> FilesOfImages:
    """Write the pictures of some images into `folder`, an image on each core; their maps stream.

    `progress` is called for each.
    """
    folder.mkdir(parents=True)
    scores, files = way.runs[0].scores, FilesOfImages()
    side = min(scores.record.image_size, MAP_LONGEST)
    with ThreadPoolExecutor(cpu_workers(None), "spg-pictures") as pool:
        for start in range(0, len(rows), _CHUNK):
            # In the order of their chunks on the disk: each is read once or twice.
            part = np.array(sorted(rows)[start : start + _CHUNK])
            maps = scores.maps(part, (side, side))
            each = pool.map(partial(_write_image, way, folder), part.tolist(), maps)
            for row, of_image in zip(part.tolist(), each, strict=True):
                files[row] = of_image
                progress()
    return {row: files[row] for row in rows}


def _write_image(
    way: DirectionRuns, folder: Path, image: int, anomaly_map: np.ndarray
) -> ImageFiles:
    """The pictures of an image; without a photograph if it cannot be read."""
    scores, store = way.runs[0].scores, way.store
    row = scores.table.iloc[image]
    white = store.spec.white if store else None
    photograph: np.ndarray | None
    try:
        photograph = read_image(way.dataset.root / row["path"], exif=way.exif, white=white)
    except SpgError:
        photograph = None
    outlined = store is not None and row["mask_state"] == MaskState.GIVEN
    return write_pictures(
        folder,
        f"{image:05d}",
        photograph,
        anomaly_map,
        shown_range(log_odds=scores.record.log_odds),
        mask=store.masks(np.array([image]))[0] if outlined and store else None,
        size=(int(row["height"]), int(row["width"])),
    )


def unread(way: DirectionRuns, files: FilesOfImages) -> list[str]:
    """The first three images whose photograph could not be read."""
    paths = way.runs[0].scores.table["path"]
    rows = [row for row, of_image in files.items() if not of_image.photograph]
    return [str(paths.iloc[row]) for row in rows[:3]]


def gallery_images(
    way: DirectionRuns, files: FilesOfImages, why: Callable[[int], Markup]
) -> Iterator[GalleryImage]:
    """The rows of a direction's gallery, in the order of `files`.

    `why` gives what an image's page says of its score besides.
    """
    table = way.runs[0].scores.table
    names = sorted(
        (name for name in table.columns if name.startswith(("share_", "score_"))),
        key=[*SHARES, *table.columns].index,
    )
    for row, of_image in files.items():
        values = table.iloc[row]
        defect = str(values["defect"])
        yield GalleryImage(
            name=values["path"],
            group=values["category"],
            defect="" if defect == GOOD else defect,
            label=_LABELS[int(values["label"])],
            score=float(values["score"]),
            files=of_image,
            size=(int(values["height"]), int(values["width"])),
            facts=facts_of_parts(float(values["score"]), {name: values[name] for name in names}),
            why=why(row),
        )


def thresholds(table: MetricsTable, scores: pd.DataFrame) -> Mapping[str, Threshold]:
    """Category → where its gallery starts: at a calibration's threshold, or at the highest F1.

    Parameters
    ----------
    table : MetricsTable
    scores : DataFrame
        `Scores.table`, which the metrics are of.
    """
    starts = {}
    for row in table.categories:
        calibrated = row.thresholds.get("image_threshold", math.nan)
        highest_f1 = row.thresholds.get("image_f1_threshold", math.nan)
        if not math.isnan(calibrated):
            starts[row.category] = Threshold(calibrated, "a calibration, given to evaluate")
        elif not math.isnan(highest_f1):
            values = scores.loc[scores["category"] == row.category, "score"].to_numpy(np.float64)
            exact = table.context.protocol == "exact"  # there that score itself is anomalous
            anomalous = values >= highest_f1 if exact else values > highest_f1
            says = "F1-max, found on these images and their labels"
            starts[row.category] = Threshold(_between(values, anomalous), says)
    return starts


def _between(values: np.ndarray, anomalous: np.ndarray) -> float:
    """Midway from the scores (n,) that are not anomalous to those that are: it reads as neither."""
    highest = values[anomalous].min()
    below = np.nextafter(highest, -np.inf)
    lowest = values[~anomalous].max() if not anomalous.all() else below
    midway = float(lowest + (highest - lowest) / 2)
    return midway if midway < highest else float(lowest)

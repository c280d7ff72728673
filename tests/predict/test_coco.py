"""COCO JSON of a run: pycocotools reads it, and its masks are the thresholded maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy.ndimage import gaussian_filter

from spg_pipe.metrics.operating import above
from spg_pipe.predict.coco import Shapes, coco_of
from spg_pipe.predict.regions import regions_of
from spg_pipe.predict.result import Failure, Line, Result

THRESHOLD = 0.6
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def smooth_map(seed: int, shape: tuple[int, int]) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 4)
    return np.clip(0.5 + noise / noise.std() / 6, 0, 1).astype(np.float32)


@pytest.fixture
def maps() -> dict[str, np.ndarray]:
    """Of several sizes; one with nothing above the threshold, one with all."""
    found = {f"a/{size[0]}.png": smooth_map(size[0], size) for size in ((90, 70), (50, 120))}
    return found | {
        "none.png": np.zeros((20, 30), np.float32),
        "all.png": np.ones((9, 8), np.float32),
    }


@pytest.fixture
def lines(maps: dict[str, np.ndarray]) -> list[Line]:
    """Their results, and a bad file in the middle."""
    results: list[Line] = []
    for path, found in maps.items():
        regions, left_out = regions_of(found, THRESHOLD)
        row, column = np.unravel_index(found.argmax(), found.shape)
        results.append(
            Result(
                path=path,
                score=1.0,
                parts={},
                height=found.shape[0],
                width=found.shape[1],
                peak=float(found.max()),
                peak_row=int(row),
                peak_column=int(column),
                pixel_threshold=THRESHOLD,
                regions=regions,
                regions_left_out=left_out,
                protocol="default",
            )
        )
    results.insert(1, Failure(path="bad.png", error="it is cut off"))
    return results


def loaded(lines: list[Line], folder: Path, shapes: Shapes = "rle") -> COCO:
    file = folder / "coco.json"
    file.write_text(json.dumps(coco_of(lines, shapes)))
    return COCO(str(file))


def test_masks_are_the_thresholded_maps(
    maps: dict[str, np.ndarray], lines: list[Line], tmp_path: Path
) -> None:
    coco = loaded(lines, tmp_path)
    assert {image["file_name"] for image in coco.dataset["images"]} == set(maps)
    for image in coco.dataset["images"]:
        mask = np.zeros((image["height"], image["width"]), bool)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            own = coco.annToMask(annotation).astype(bool)
            assert own.sum() == annotation["area"]
            left, top, width, height = annotation["bbox"]
            assert own[top : top + height, left : left + width].sum() == annotation["area"]
            assert not (mask & own).any()
            mask |= own
        np.testing.assert_array_equal(mask, above(maps[image["file_name"]], THRESHOLD))


def test_polygons_cover_nearly_the_same_pixels(
    maps: dict[str, np.ndarray], lines: list[Line], tmp_path: Path
) -> None:
    coco = loaded(lines, tmp_path, "polygons")
    for image in coco.dataset["images"]:
        shapes = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        drawn = [coco.annToMask(shape).astype(bool) for shape in shapes]
        marked = above(maps[image["file_name"]], THRESHOLD)
        both = np.any([marked & ~marked, *drawn], axis=0)
        assert (both != marked).mean() < 0.03


def test_every_annotation_has_what_importers_ask_for(lines: list[Line]) -> None:
    found = coco_of(lines)
    assert found["categories"] == [{"id": 1, "name": "anomaly", "supercategory": ""}]
    sizes = {image["id"]: [image["height"], image["width"]] for image in found["images"]}
    assert [annotation["id"] for annotation in found["annotations"]] == list(
        range(1, len(found["annotations"]) + 1)
    )
    for annotation in found["annotations"]:
        assert (annotation["category_id"], annotation["iscrowd"]) == (1, 0)
        assert THRESHOLD < annotation["score"] <= 1
        segmentation = json.loads(json.dumps(annotation["segmentation"]))
        assert segmentation["size"] == sizes[annotation["image_id"]]
        assert all(isinstance(count, int) for count in segmentation["counts"])

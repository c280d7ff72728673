"""A detector in a notebook: what it takes, what it gives, and that both are the pipeline's."""

from __future__ import annotations

import io
from dataclasses import FrozenInstanceError
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SPEC, TinyBackbone, extracted, photograph

from spg_pipe import Detector, Prediction
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.decision.calibration import Calibration, Judging, Limits, Threshold, place_beside
from spg_pipe.detector import model
from spg_pipe.detector.scores import score_store
from spg_pipe.errors import SpgError
from spg_pipe.images.reading import read_image
from spg_pipe.metrics.operating import above
from spg_pipe.predict.notebook import pixels_of
from spg_pipe.predict.regions import regions_of
from spg_pipe.predict.result import line_of, parse_line


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> list[TinyBackbone]:
    """The tiny backbone in place of every other; each that was loaded."""
    loaded: list[TinyBackbone] = []

    def load(alias: str, **_options: object) -> TinyBackbone:
        assert alias == SPEC.alias
        loaded.append(TinyBackbone())
        return loaded[-1]

    monkeypatch.setattr("spg_pipe.backbones.load_backbone", load)
    return loaded


@pytest.fixture
def folder(tiny_detector: model.Detector, backbone: list[TinyBackbone], tmp_path: Path) -> Path:
    tiny_detector.save(tmp_path / "detector")
    return tmp_path / "detector"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return photograph(tmp_path / "part.png", (40, 48))


def calibration(detector: model.Detector, limit: float, **judging: object) -> Calibration:
    limits = Limits(
        image=Threshold(value=limit, says=""),
        pixel=Threshold(value=0.4, says=""),
        scores=(limit - 1, limit),
        anomalous=0,
    )
    return Calibration(
        judging=Judging.model_validate({"detector": detector.fingerprint} | judging),
        method="manual",
        false_alarms=None,
        confidence=None,
        recall=None,
        by_folder=False,
        groups={"": limits},
        notes=(),
        made=date(2026, 1, 1),
        valid_until=None,
        versions={},
    ).sealed()


def test_a_prediction_has_score_map_parts_and_regions(folder: Path, image: Path) -> None:
    found = Detector.load(folder).predict(image, pixel_threshold=0.4)
    assert found.map.shape == (40, 48)
    assert found.map.dtype == np.float32
    assert found.score == found.result.score
    assert set(found.parts) == {"score_cls", "score_map_max"}
    assert found.regions == regions_of(found.map, 0.4).regions
    assert found.map[found.result.peak_row, found.result.peak_column] == found.map.max()
    assert found.result.path == str(image)
    assert parse_line(line_of(found.result)) == found.result
    with pytest.raises(FrozenInstanceError):
        found.map = found.map  # type: ignore[misc]


def test_a_prediction_draws_itself_and_its_text_is_short(folder: Path, image: Path) -> None:
    found = Detector.load(folder).predict(image, threshold=-9, pixel_threshold=0.0)
    drawn = Image.open(io.BytesIO(found._repr_png_()))
    assert (drawn.format, drawn.size) == ("PNG", (48, 40))
    assert repr(found) == f"Prediction(score {found.score:.4f}, anomalous, 1 region, 40×48)"


def test_every_kind_of_image_gives_the_same_prediction(folder: Path, image: Path) -> None:
    detector = Detector.load(folder)
    pixels = read_image(image, exif=True)
    kinds = [str(image), Image.open(image), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    wanted = detector.predict(image)
    for kind in kinds:
        found = detector.predict(kind)
        np.testing.assert_array_equal(found.map, wanted.map)
        assert found.score == wanted.score
    # Floats become 16 bits, of which the first 8 are these.
    near = detector.predict(pixels / 255)
    assert near.score == pytest.approx(wanted.score, abs=1e-4)


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("L", (6, 5), np.uint8),
        ("1", (6, 5), np.uint8),
        ("P", (6, 5, 3), np.uint8),
        ("LA", (6, 5, 2), np.uint8),
        ("RGBA", (6, 5, 4), np.uint8),
        ("I;16", (6, 5), np.uint16),
    ],
)
def test_a_pil_image_is_read_as_its_file(mode, shape, dtype, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    picture = Image.fromarray(values)
    picture = picture.convert(mode) if mode in ("1", "P") else picture
    assert picture.mode == mode
    picture.save(tmp_path / "x.png")
    wanted = read_image(tmp_path / "x.png", exif=True)
    np.testing.assert_array_equal(pixels_of(picture, exif=True), wanted)


def test_a_pil_images_exif_orientation_is_undone_unless_the_protocol_ignores_it() -> None:
    picture = Image.new("RGB", (8, 4))
    picture.getexif()[0x0112] = 6
    assert pixels_of(picture, exif=True).shape == (8, 4, 3)
    assert pixels_of(picture, exif=False).shape == (4, 8, 3)


def test_grey_is_repeated_and_floats_become_16_bits() -> None:
    grey = np.array([[0, 0.5], [1, 0.25]])
    pixels = pixels_of(grey, exif=True)
    assert (pixels.shape, pixels.dtype) == ((2, 2, 3), np.uint16)
    assert pixels[..., 0].tolist() == [[0, 32768], [65535, 16384]]
    assert (pixels == pixels[..., :1]).all()
    tensor = torch.from_numpy(grey)[None]
    for same in (tensor, tensor.bfloat16(), grey.astype(np.float16)):
        np.testing.assert_array_equal(pixels_of(same, exif=True), pixels)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((2, 3, 4), np.uint8), r"array of shape \(2, 3, 4\)"),
        (np.zeros((1, 2, 3, 3), np.uint8), r"array of shape \(1, 2, 3, 3\)"),
        (np.zeros((0, 3), np.uint8), r"array of shape \(0, 3\)"),
        (np.zeros((2, 3), np.int64), "array of int64"),
        (np.zeros((2, 3), bool), "array of bool"),
        (np.full((2, 3), 255.0), "floats from 255 to 255"),
        (np.full((2, 3), -0.1), "floats from -0.1"),
        (np.array([[np.nan, 0.5]]), "floats from nan"),
        (torch.zeros(2, 3, 3), r"tensor of shape \(2, 3, 3\)"),
        (torch.zeros(1, 3, 4, 4), r"tensor of shape \(1, 3, 4, 4\)"),
        ([[1, 2], [3, 4]], "a list"),
    ],
)
def test_what_is_no_image_is_an_error_that_says_what_was_expected(image, found: str) -> None:
    with pytest.raises(SpgError, match=f"{found}.*Expected is a path, a PIL image, a NumPy array"):
        pixels_of(image, exif=True)


def test_a_pil_image_of_another_mode_is_an_error() -> None:
    with pytest.raises(SpgError, match=r"has the mode CMYK\. Convert it to RGB"):
        pixels_of(Image.new("CMYK", (2, 2)), exif=True)


def test_the_backbone_is_loaded_once_and_not_before_it_is_needed(
    folder: Path, image: Path, backbone: list[TinyBackbone]
) -> None:
    detector = Detector.load(folder)
    assert backbone == []
    detector.predict(image)
    detector.predict(image)
    assert len(backbone) == 1
    assert backbone[0].calls == 2


def test_a_calibration_beside_the_detector_decides(
    folder: Path, image: Path, tiny_detector: model.Detector
) -> None:
    score = Detector.load(folder).predict(image).score
    assert Detector.load(folder).predict(image).decision is None
    calibration(tiny_detector, score - 0.1).save(place_beside(folder))
    found = Detector.load(folder).predict(image)
    assert found.decision == "anomalous"
    assert (found.result.p_value, found.result.pixel_threshold) == (pytest.approx(1 / 3), 0.4)
    assert sum(region.area for region in found.regions) == above(found.map, 0.4).sum()
    assert Detector.load(folder).predict(image, threshold=score + 1).decision == "normal"
    calibration(tiny_detector, score + 0.1).save(folder.parent / "other.json")
    other = Detector.load(folder, calibration=folder.parent / "other.json")
    assert other.predict(image).decision == "normal"


def test_a_calibration_for_another_judging_is_refused(
    folder: Path, tiny_detector: model.Detector
) -> None:
    calibration(tiny_detector, 0.0, tiles=(64,)).save(place_beside(folder))
    with pytest.raises(SpgError, match="--tiles was 64 and is none"):
        Detector.load(folder)
    calibration(tiny_detector, 0.0).save(place_beside(folder))
    with pytest.raises(SpgError, match="the bank of --normals was none and is given"):
        Detector.load(folder, bank="goods", calibration=place_beside(folder))


def test_ignored_pixels_and_the_fit_are_those_of_the_command(folder: Path, image: Path) -> None:
    ignored = np.zeros((40, 48), np.uint8)
    ignored[:20] = 255
    found = Detector.load(folder).predict(image, ignored=ignored, pixel_threshold=0.0)
    assert found.result.ignored_share == 0.5
    assert not found.map[:20].any()
    assert found.regions[0].bbox == (0, 20, 48, 20)
    with pytest.raises(SpgError, match=r"of shape \(20, 48\), and the image of \(40, 48\)"):
        Detector.load(folder).predict(image, ignored=ignored[:20])
    cropped = Detector.load(folder, fit="crop").predict(image)
    assert not cropped.map[:, :4].any()
    assert cropped.map[:, 4:44].all()


def test_a_detector_of_a_notebook_stands_for_the_artefact(folder: Path, tmp_path: Path) -> None:
    detector = Detector.load(str(folder))
    assert isinstance(detector, model.Detector)
    detector.save(tmp_path / "again")
    assert model.Detector.load(tmp_path / "again").record == detector.record


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_maps_are_those_that_the_pipeline_makes_of_a_store(
    dtype: str,
    tolerance: float,
    folder: Path,
    tiny_detector: model.Detector,
    tiny_manifest: Manifest,
    tmp_path: Path,
) -> None:
    store = extracted(tiny_manifest, tmp_path / "x.zarr", dtype=dtype)
    scores = score_store(tiny_detector, store, tmp_path / "scores")
    detector = Detector.load(folder)
    for row in range(len(store)):
        found: Prediction = detector.predict(tiny_manifest.image_path(row))
        size = (found.result.height, found.result.width)
        wanted = scores.maps(np.array([row]), size)[0]
        assert np.abs(found.map - wanted).max() < tolerance
        assert abs(found.score - scores.table["score"][row]) < tolerance

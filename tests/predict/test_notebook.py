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
    assert set(found.result.parts) == {"score_cls", "score_map_max"}
    assert found.result.regions == regions_of(found.map, 0.4).regions
    assert found.map[found.result.peak_row, found.result.peak_column] == found.map.max()
    assert found.result.path == str(image)
    assert parse_line(line_of(found.result)) == found.result
    with pytest.raises(FrozenInstanceError):
        found.map = found.map  # type: ignore[misc]


def test_a_prediction_draws_itself_and_its_text_is_short(folder: Path, image: Path) -> None:
    found = Detector.load(folder).predict(image, threshold=-9, pixel_threshold=0.0)
    drawn = Image.open(io.BytesIO(found._repr_png_()))
    assert (drawn.format, drawn.size) == ("PNG", (48, 40))
    assert repr(found) == f"Prediction(score {found.result.score:.4f}, anomalous, 1 region, 40×48)"


def test_every_kind_of_image_gives_the_same_prediction(folder: Path, image: Path) -> None:
    detector = Detector.load(folder)
    pixels = read_image(image, exif=True)
    kinds = [str(image), Image.open(image), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    wanted = detector.predict(image)
    for kind in kinds:
        found = detector.predict(kind)
        np.testing.assert_array_equal(found.map, wanted.map)
        assert found.result.score == wanted.result.score
    # Floats become 16 bits, of which the first 8 are these.
    near = detector.predict(pixels / 255)
    assert near.result.score == pytest.approx(wanted.result.score, abs=1e-4)


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
    score = Detector.load(folder).predict(image).result.score
    assert Detector.load(folder).predict(image).result.decision is None
    calibration(tiny_detector, score - 0.1).save(place_beside(folder))
    found = Detector.load(folder).predict(image)
    assert found.result.decision == "anomalous"
    assert (found.result.p_value, found.result.pixel_threshold) == (pytest.approx(1 / 3), 0.4)
    assert sum(region.area for region in found.result.regions) == above(found.map, 0.4).sum()
    assert Detector.load(folder).predict(image, threshold=score + 1).result.decision == "normal"
    calibration(tiny_detector, score + 0.1).save(folder.parent / "other.json")
    other = Detector.load(folder, calibration=folder.parent / "other.json")
    assert other.predict(image).result.decision == "normal"


def test_a_named_calibration_must_fit_and_one_that_merely_lies_there_decides_nothing(
    folder: Path, image: Path, tiny_detector: model.Detector
) -> None:
    calibration(tiny_detector, 0.0, tiles=(64,)).save(place_beside(folder))
    with pytest.warns(UserWarning, match=r"--tiles was 64 and is none.*nothing is decided"):
        detector = Detector.load(folder)
    assert detector.predict(image).result.decision is None
    assert "no calibration" in repr(detector)
    with pytest.raises(SpgError, match="--tiles was 64 and is none"):
        Detector.load(folder, calibration=place_beside(folder))


def test_no_calibration_is_looked_at_if_none_is_wanted(
    folder: Path, image: Path, tiny_detector: model.Detector, recwarn: pytest.WarningsRecorder
) -> None:
    calibration(tiny_detector, 0.0).save(place_beside(folder))
    assert Detector.load(folder).predict(image).result.decision
    assert Detector.load(folder, calibration=False).predict(image).result.decision is None
    place_beside(folder).write_text("damaged")
    Detector.load(folder, calibration=False)
    assert not recwarn


def test_pixels_cannot_be_ignored_under_a_calibration_that_was_made_with_all(
    folder: Path, image: Path, tiny_detector: model.Detector
) -> None:
    calibration(tiny_detector, 0.0).save(place_beside(folder))
    ignored, detector = np.ones((40, 48), np.uint8), Detector.load(folder)
    ignored[5:, 5:] = 0
    with pytest.raises(SpgError, match="The calibration was made without ignored pixels"):
        detector.predict(image, ignored=ignored)
    assert detector.predict(image, ignored=ignored, threshold=-9).result.decision == "anomalous"


def test_16_bits_are_read_with_white_of_the_calibration(
    folder: Path, tmp_path: Path, tiny_detector: model.Detector
) -> None:
    values = np.random.default_rng(1).integers(0, 4000, (40, 48), np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    with pytest.raises(SpgError, match="in Python an array whose white is 65535"):
        Detector.load(folder).predict(tmp_path / "deep.png")
    calibration(tiny_detector, 0.0, white=4095).save(place_beside(folder))
    found = Detector.load(folder).predict(tmp_path / "deep.png")
    wanted = read_image(tmp_path / "deep.png", exif=True, white=4095)
    np.testing.assert_array_equal(found.pixels, wanted)
    Image.fromarray(values * 2).save(tmp_path / "deep.png")
    with pytest.raises(SpgError, match="expected are 0 to 4095"):
        Detector.load(folder).predict(tmp_path / "deep.png")


def test_ignored_pixels_and_the_fit_are_those_of_the_command(folder: Path, image: Path) -> None:
    ignored = np.zeros((40, 48), np.uint8)
    ignored[:20] = 255
    found = Detector.load(folder).predict(image, ignored=ignored, pixel_threshold=0.0)
    assert found.result.ignored_share == 0.5
    assert not found.map[:20].any()
    assert found.result.regions[0].bbox == (0, 20, 48, 20)
    with pytest.raises(SpgError, match=r"of shape \(20, 48\), and the image of \(40, 48\)"):
        Detector.load(folder).predict(image, ignored=ignored[:20])
    cropped = Detector.load(folder, fit="crop").predict(image)
    assert not cropped.map[:, :4].any()
    assert cropped.map[:, 4:44].all()


def test_the_artefact_is_held_for_functions_that_take_one(folder: Path, tmp_path: Path) -> None:
    artefact = Detector.load(str(folder)).artefact
    artefact.save(tmp_path / "again")
    assert model.Detector.load(tmp_path / "again").record == artefact.record


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
        assert abs(found.result.score - scores.table["score"][row]) < tolerance

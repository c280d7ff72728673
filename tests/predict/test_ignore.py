"""`predict` with masks of what is ignored, padded and cropped images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import save
from PIL import Image
from predict.conftest import rows_in
from tiny import SIZE, TinyBackbone, additive_plan, extracted, manifest_of, weighted, write_folder

from spg_pipe.cli.options import Options
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import score_store
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.predict import Ask, predict_images
from spg_pipe.pipeline.targets import ignored_in
from spg_pipe.predict.view import Viewing


@pytest.fixture(scope="module")
def detector(tiny_store, tiny_sae) -> Detector:
    made = weighted(make_detector(tiny_store, additive_plan(tiny_sae))[0])
    return replace(made, record=made.record.sealed())


@pytest.fixture
def ask(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Images of two cameras, and a detector."""
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    detector.save(tmp_path / "detector")
    rng = np.random.default_rng(1)
    for name in ("cam1/a.png", "cam1/b.png", "cam2/c.png"):
        save(rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8), tmp_path / "photos" / name)
    source = [str(tmp_path / "photos")]
    return Ask(tmp_path / "detector", source, tmp_path / "out", device="cpu", overlays=0)


def mask(path: Path, ignored: tuple[slice, slice], size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    values = np.zeros(size, np.uint8)
    values[ignored] = 255
    save(values, path)
    return path


def predicted(ask: Ask, **changes: Any) -> list[dict[str, Any]]:
    asked = replace(ask, **changes)
    predict_images(asked, Console(verbosity=0))
    return rows_in(asked.out)


LEFT = (slice(None), slice(SIZE // 2))
RIGHT = (slice(None), slice(SIZE // 2, None))


def test_what_is_ignored_moves_no_result(ask: Ask, tmp_path: Path) -> None:
    viewing = Viewing(ignore=mask(tmp_path / "right.png", RIGHT))
    open_ = predicted(ask)
    first = predicted(ask, viewing=viewing, explained=True)
    assert [line["ignored_share"] for line in first] == [0.5] * 3
    assert ", a part ignored, seed 1" in (ask.out / "run.json").read_text()
    assert all(line["peak_column"] < SIZE // 2 for line in first)
    assert [line["score"] for line in first] != [line["score"] for line in open_]
    rng = np.random.default_rng(2)
    for path in sorted((tmp_path / "photos").rglob("*.png")):
        pixels = np.array(Image.open(path))
        pixels[RIGHT] = rng.integers(0, 255, pixels[RIGHT].shape)
        save(pixels, path)
    second = predicted(ask, viewing=viewing, out=tmp_path / "again")
    for one, two in zip(first, second, strict=True):
        for name in ("score", "parts", "peak", "peak_row", "peak_column"):
            assert one[name] == two[name]
    assert [line["score"] for line in predicted(ask, out=tmp_path / "open")] != [
        line["score"] for line in open_
    ]


def test_an_image_without_a_mask_is_an_error_of_its_own(ask: Ask, tmp_path: Path) -> None:
    mask(tmp_path / "masks" / "cam1.png", LEFT)
    mask(tmp_path / "masks" / "cam1" / "b.png", RIGHT, (SIZE, SIZE + 9))
    lines = predicted(ask, viewing=Viewing(ignore=tmp_path / "masks"))
    assert lines[0]["ignored_share"] == 0.5
    assert "has 41×32 pixels and cam1/b.png has 32×32" in lines[1]["error"]
    assert "There is no mask of cam2/c.png" in lines[2]["error"]


def test_masks_in_the_folder_of_images_are_no_images(ask: Ask, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "keep out"
    mask(folder / "default.png", LEFT)
    lines = predicted(ask, viewing=Viewing(ignore=folder))
    assert [line["path"] for line in lines] == ["cam1/a.png", "cam1/b.png", "cam2/c.png"]


def test_another_mask_is_another_run(ask: Ask, tmp_path: Path) -> None:
    one = Viewing(ignore=mask(tmp_path / "one.png", LEFT))
    two = Viewing(ignore=mask(tmp_path / "two.png", RIGHT))
    each = [predicted(ask, viewing=view) for view in (one, two, replace(two, blank=True))]
    scores = [[line["score"] for line in lines] for lines in each]
    assert scores[0] != scores[1]


def test_predict_and_score_ignore_the_same(ask: Ask, detector: Detector, tmp_path: Path) -> None:
    write_folder(tmp_path / "parts", ("bolt",), good=2, masked=2, missing=0)
    manifest = manifest_of(tmp_path / "parts")
    store = extracted(manifest, tmp_path / "store.zarr")
    viewing = Viewing(ignore=mask(tmp_path / "m.png", (slice(13), slice(None)), (40, 48)))
    scores = score_store(detector, store, tmp_path / "s", ignored=ignored_in(store, viewing))
    sources = [str(manifest.root / path) for path in scores.table["path"]]
    lines = predicted(ask, sources=sources, viewing=viewing)
    found = [line["score"] for line in lines]
    np.testing.assert_allclose(found, scores.table["score"], atol=1e-3)
    maps = scores.maps(np.arange(4))
    peaks = maps.reshape(4, -1).max(axis=1)
    np.testing.assert_allclose([line["peak"] for line in lines], peaks, atol=2e-3)


def test_padded_and_cropped_images_are_judged_where_they_show_something(
    ask: Ask, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    save(rng.integers(0, 255, (20, 50, 3), np.uint8), tmp_path / "wide.png")
    wide = {"sources": [str(tmp_path / "wide.png")]}
    (padded,) = predicted(ask, viewing=Viewing("letterbox"), **wide)
    assert ", letterbox, seed 1" in (ask.out / "run.json").read_text()
    assert (padded["height"], padded["width"], padded["ignored_share"]) == (20, 50, 0)
    (cropped,) = predicted(ask, viewing=Viewing("crop"), **wide)
    assert cropped["ignored_share"] == pytest.approx(0.6)
    assert 15 <= cropped["peak_column"] < 35


def test_options_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(SpgError, match="leave out one"):
        Options(letterbox=True, crop=True).viewing()
    with pytest.raises(SpgError, match="add --ignore"):
        Options(blank=True).viewing()
    assert Options(crop=True).viewing() == Viewing("crop")

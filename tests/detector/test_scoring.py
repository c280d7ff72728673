"""Maps and image scores (docs/method.md §4), and the Scores folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from scipy.special import logsumexp
from tiny import SIZE, SPEC, files, keyed

import spg_pipe.detector.scores as scores_module
from spg_pipe.artefacts.digests import file_digests
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.decision.rules import Published, image_scores
from spg_pipe.detector.judge import judge
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Scores, score_store
from spg_pipe.errors import DamagedError
from spg_pipe.pipeline.inspection import inspect
from spg_pipe.recipe.params import ScoreParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens


def random_maps(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


@given(
    seed=st.integers(0, 999),
    share=st.floats(0.01, 1),
    tau=st.sampled_from([0.01, 0.1, 1.0]),
    alpha=st.floats(0, 1),
)
def test_image_scores_are_their_formulas(seed: int, share: float, tau: float, alpha: float) -> None:
    maps, cls = random_maps(3, 9, 11, seed=seed), random_maps(3, seed=seed + 1)
    flat = maps.reshape(3, -1).astype(np.float64)
    top = np.sort(flat, axis=1)[:, -max(1, int(share * 99)) :].mean(axis=1)
    for name, options, expected in (
        ("max", {}, flat.max(axis=1)),
        ("cls", {}, cls),
        ("top_mean", {"top_share": share}, top),
        ("log_mean_exp", {"lme_tau": tau}, tau * (logsumexp(flat / tau, axis=1) - np.log(99))),
        ("mix", {"alpha": alpha}, alpha * cls + (1 - alpha) * flat.max(axis=1)),
    ):
        found = image_scores(maps, cls, name, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_the_table_is_the_stores_with_scores_added(
    scores: Scores, tiny_store: FeatureStore, tiny_detector: Detector
) -> None:
    for column in tiny_store.table.columns:
        assert scores.table[column].tolist() == tiny_store.table[column].tolist()
    for image in (0, 7, 15):
        tokens = {layer: image_tokens(tiny_store, layer, np.array([image])) for layer in ("1", "2")}
        patches, cls = tiny_detector.probabilities(keyed(tokens))
        maps = anomaly_maps(patches, SIZE)
        row = scores.table.iloc[image]
        assert row["score"] == pytest.approx(maps.max(), abs=1e-6)
        assert row["score_map_max"] == pytest.approx(maps.max(), abs=1e-6)
        assert row["score_cls"] == pytest.approx(cls.item(), abs=1e-6)
        np.testing.assert_allclose(scores.maps(np.array([image])), maps, atol=1e-6)


def test_patch_probabilities_are_kept_on_their_grids_in_float32(scores: Scores) -> None:
    group = zarr.open_group(scores.path / "maps.zarr", mode="r")
    first, second = group["probability_1"], group["probability_2"]
    assert (first.shape, second.shape, first.dtype) == ((16, 4, 4), (16, 2, 2), np.float32)
    assert first.metadata.dimension_names == ("image", "row_1", "column_1")
    found = scores.patches(np.array([9, 3, 3]))
    assert np.array_equal(found["2"].numpy(), second[...][[9, 3, 3]])


def test_a_second_scoring_gives_the_same_bytes_which_load_as_they_were(
    scores: Scores, tiny_store: FeatureStore, tiny_detector: Detector, tmp_path: Path
) -> None:
    score_store(tiny_detector, tiny_store, tmp_path / "again")
    assert files(tmp_path / "again") == files(scores.path)
    loaded = Scores.load(tmp_path / "again")
    assert_frame_equal(loaded.table, scores.table, check_dtype=False)
    assert loaded.record == scores.record


def test_the_batch_size_does_not_move_a_score(
    scores: Scores,
    tiny_store: FeatureStore,
    tiny_detector: Detector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scores_module, "BATCH_IMAGES", 1)
    one = score_store(tiny_detector, tiny_store, tmp_path / "one")
    for column in ("score", "score_cls", "score_map_max"):
        np.testing.assert_allclose(one.table[column], scores.table[column], atol=1e-6)


def test_other_options_than_the_detectors_are_recorded(
    tiny_store: FeatureStore, tiny_detector: Detector, tmp_path: Path
) -> None:
    options = ScoreParams(rule="published", image_score="cls")
    scores = score_store(tiny_detector, tiny_store, tmp_path / "cls", score=options)
    assert scores.record.rule == Published(image_score="cls")
    assert scores.table["score"].equals(scores.table["score_cls"].rename("score"))


def test_scores_say_what_they_came_from(
    scores: Scores, tiny_store: FeatureStore, tiny_detector: Detector
) -> None:
    record = scores.record
    assert record.store == tiny_store.fingerprint
    assert record.detector == tiny_detector.record.origin
    assert record.licences == ("parts: CC0", "tiny weights: CC0")
    assert record.method_protocol == "default"


def test_images_in_memory_are_scored_as_a_store_is(
    scores: Scores, tiny_store: FeatureStore, tiny_detector: Detector
) -> None:
    images = np.arange(4)
    tokens = {layer: image_tokens(tiny_store, layer, images) for layer in ("1", "2")}
    grids = {"1": (4, 4), "2": (2, 2)}
    judged = judge(tiny_detector, tokens, grids, SPEC, tiny_detector.record.rule)
    assert list(judged.columns) == ["score", "score_cls", "score_map_max"]
    for name, values in judged.columns.items():
        np.testing.assert_allclose(values, scores.table[name][:4], atol=1e-6)
    np.testing.assert_allclose(anomaly_maps(judged.patches, SIZE), scores.maps(images), atol=1e-6)


CHUNK = "maps.zarr/probability_1/c/0/0/0"


def edited(place: Path, **content: object) -> None:
    config = json.loads((place / "config.json").read_text())
    config.pop("seal", None)
    (place / "config.json").write_text(json.dumps(config | content))


def retabled(place: Path, **columns: object) -> None:
    """Other columns in the table, None takes one away, with the digest of the new file."""
    table = pd.read_parquet(place / "scores.parquet").assign(**columns)
    table = table.drop(columns=[name for name, value in columns.items() if value is None])
    table.to_parquet(place / "scores.parquet")
    digests = json.loads((place / "config.json").read_text())["files_sha256"]
    edited(place, files_sha256=digests | file_digests(place, "scores.parquet"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda place: flip(place / CHUNK), f"{CHUNK} is damaged"),
        (lambda place: flip(place / "scores.parquet"), "scores.parquet is damaged"),
        (lambda place: (place / CHUNK).write_bytes(b"short"), f"{CHUNK} is damaged"),
        (lambda place: (place / CHUNK).unlink(), f"{CHUNK} cannot be read"),
        (lambda place: edited(place, seed=9), "does not give its fingerprint"),
        (lambda place: edited(place, files_sha256=None), "not a whole scores: files_sha256"),
        (lambda place: edited(place, files_sha256={"../x": ""}), r"\.\./x is outside the folder"),
        (lambda place: retabled(place, score=np.nan), "no finite score for each of 16 images"),
        (lambda place: retabled(place, score="high"), "not a whole scores"),
        (lambda place: retabled(place, score=None), "it lacks 'score'"),
        (lambda place: retabled(place, label=None), "label"),
    ],
)
def test_scores_that_are_not_as_written_are_refused(
    scores: Scores, copy_of: Callable[[Path], Path], damage: Callable[[Path], object], fault: str
) -> None:
    place = copy_of(scores.path)
    assert Scores.load(place).record == scores.record
    damage(place)
    for read in (Scores.load, inspect):
        with pytest.raises(DamagedError, match=fault) as error:
            read(place)
    assert str(place) in str(error.value)
    assert "again" in str(error.value)


def test_a_crash_while_scoring_leaves_the_old_scores(
    scores: Scores,
    tiny_store: FeatureStore,
    tiny_detector: Detector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = shutil.copytree(scores.path, tmp_path / "run")
    before = files(place)
    monkeypatch.setattr(scores_module, "write_record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_store(tiny_detector, tiny_store, place)
    assert files(place) == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]

"""A store of tokens that somebody has as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import sae_params

from spg_pipe import Detector, DetectorPlan, make_detector, score_store
from spg_pipe.errors import SpgError
from spg_pipe.guides.kinds import ContrastGuides
from spg_pipe.images.preprocess import resize_mask
from spg_pipe.recipe.params import MethodParams
from spg_pipe.sae.train import train_sae
from spg_pipe.store.arrays import PATCH, store_of_arrays
from spg_pipe.store.verify import verify


def with_defects(images: int = 12, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (n, 6, 6, D) and masks (n, 48, 48): every other image has a defect."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((images, 6, 6, dim)).astype(np.float32)
    masks = np.zeros((images, 48, 48), np.uint8)
    masks[::2, 16:32, 24:40] = 255
    tokens[::2, 2:4, 3:5] += 3 * rng.standard_normal(dim).astype(np.float32)
    return tokens, masks


def test_a_store_gives_back_tokens_masks_and_labels(tmp_path: Path) -> None:
    tokens, masks = with_defects()
    store = store_of_arrays(tmp_path / "own.zarr", tokens, masks=masks)
    rows = np.arange(12)
    np.testing.assert_array_equal(store.tokens("tokens", rows), tokens.reshape(12, 36, 16))
    np.testing.assert_allclose(store.cls("tokens", rows), tokens.mean(axis=(1, 2)), atol=1e-6)
    side = 6 * PATCH
    wanted = [resize_mask(mask, side) for mask in masks]
    np.testing.assert_array_equal(store.masks(rows), wanted)
    assert store.table["label"].tolist() == [1, 0] * 6
    assert store.table["path"].tolist() == [f"{row:07d}" for row in rows]
    assert verify(store.path) == []


def test_half_precision_is_kept_and_layers_may_differ(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = {
        "a": rng.standard_normal((3, 16, 4)).astype(np.float16),
        "b": rng.standard_normal((3, 2, 3, 5)).astype(np.float16),
    }
    store = store_of_arrays(tmp_path / "x.zarr", layers)
    assert store.spec.dtype == "float16"
    assert {name: shape.grid for name, shape in store.spec.layers.items()} == {
        "a": (4, 4),
        "b": (2, 3),
    }
    np.testing.assert_array_equal(store.tokens("b", np.array([1]))[0], layers["b"][1].reshape(6, 5))
    assert set(store.table["label"]) == {255}


def test_tokens_without_images_train_an_autoencoder(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).standard_normal((3000, 8))
    store = store_of_arrays(tmp_path / "x.zarr", tokens)
    made = train_sae(store, sae_params(dict_size=16, k=4, epochs=4), MethodParams(), seed=1)
    assert made.quality.layers["tokens"].r2 > 0.3


def test_guides_of_arrays_find_the_defects_of_others(tmp_path: Path) -> None:
    tokens, masks = with_defects(24)
    store = store_of_arrays(tmp_path / "a.zarr", tokens[:12], masks=masks[:12])
    sae = train_sae(store, sae_params(dict_size=32, k=4, epochs=40), MethodParams(), seed=1).run
    detector, _ = make_detector(store, DetectorPlan(sae, 1, ContrastGuides(atoms=6)))
    others = store_of_arrays(tmp_path / "b.zarr", tokens[12:], masks=masks[12:])
    scores = score_store(detector, others, str(tmp_path / "scores"))
    table = scores.table
    assert table["score"][table["label"] == 1].min() > table["score"][table["label"] == 0].max()
    maps, marked = scores.maps(np.arange(12)), others.masks(np.arange(12)) > 0
    assert maps[marked].mean() > maps[~marked].mean() + 0.1

    detector.save(tmp_path / "detector")
    with pytest.raises(SpgError, match=r"made from arrays of tokens.*store_of_arrays"):
        Detector.load(tmp_path / "detector").predict(np.zeros((8, 8), np.uint8))
    stranger = store_of_arrays(tmp_path / "c.zarr", tokens[12:], name="another")
    with pytest.raises(SpgError, match="another backbone"):
        score_store(detector, stranger, tmp_path / "no")


def test_the_same_arrays_are_not_written_again_and_others_are_refused(tmp_path: Path) -> None:
    tokens, masks = with_defects()
    first = store_of_arrays(tmp_path / "x.zarr", tokens, masks=masks)
    stamp = (first.files.local / "shards.json").stat().st_mtime_ns
    store_of_arrays(tmp_path / "x.zarr", tokens, masks=masks)
    assert (first.files.local / "shards.json").stat().st_mtime_ns == stamp
    with pytest.raises(SpgError, match="its images, masks or labels are others"):
        store_of_arrays(tmp_path / "x.zarr", tokens + 1, masks=masks)
    other = store_of_arrays(tmp_path / "x.zarr", tokens + 1, masks=masks, replace=True)
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("tokens", "others", "message"),
    [
        (np.zeros((2, 5, 4)), {}, r"of shape \(2, 5, 4\).*of a square grid"),
        (np.zeros((2, 4, 4), np.int64), {}, "the tokens are int64"),
        (np.full((2, 4, 4), np.inf), {}, "some tokens are not finite"),
        (np.zeros((2, 4, 4)), {"masks": np.zeros((3, 9, 9))}, r"\(3, 9, 9\)\]. Expected"),
        (np.zeros((2, 4, 4)), {"masks": np.zeros((2, 9))}, r"\(2, 9\)\]. Expected"),
        (np.zeros((0, 4, 4)), {}, r"\(0, 2, 2, 4\)\]. Expected"),
        (np.zeros((2, 4, 4)), {"name": "my own"}, r"make no store \(alias: .*letters, digits"),
        ({"a b": np.zeros((2, 4, 4))}, {}, r"make no store \(layers"),
        ({}, {}, "There is no array of tokens"),
    ],
)
def test_arrays_that_do_not_fit_are_errors(tokens, others, message, tmp_path: Path) -> None:
    with pytest.raises(SpgError, match=message):
        store_of_arrays(tmp_path / "x.zarr", tokens, **others)


def test_tensors_are_taken_as_arrays(tmp_path: Path) -> None:
    store = store_of_arrays(tmp_path / "x.zarr", torch.ones(2, 4, 3))
    assert store.tokens("tokens", np.array([0])).shape == (1, 4, 3)

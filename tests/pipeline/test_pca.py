"""`spg-pipe inspect STORE --pca FILE.png`: tokens as colours."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shaped import shaped_store
from typer.testing import CliRunner

from spg_pipe.cli.main import app
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.pipeline import pca
from spg_pipe.pipeline.pca import chosen_rows, draw_pca, token_colours
from spg_pipe.store.reader import FeatureStore


def test_colours_are_the_principal_components_of_these_images(tiny_store: FeatureStore) -> None:
    rows = np.array([9, 2, 5, 14])
    rgb, share = token_colours(tiny_store, "1", rows)
    tokens = tiny_store.tokens("1", rows).astype(np.float64).reshape(-1, 12)
    centred = tokens - tokens.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    for component in range(3):
        axis = axes[component] * np.sign(axes[component][np.abs(axes[component]).argmax()])
        values = centred @ axis
        low, high = np.quantile(values, [0.01, 0.99])
        expected = np.clip((values - low) / (high - low), 0, 1)
        np.testing.assert_allclose(rgb[..., component].ravel(), expected, atol=1e-6)
    assert share == pytest.approx((singular**2 / (singular**2).sum())[:3].sum())
    assert rgb.shape == (4, 4, 4, 3)


def test_a_large_common_part_changes_no_colour(tiny_manifest: Manifest, tmp_path: Path) -> None:
    def tokens(row: int) -> np.ndarray:
        return np.random.default_rng(row).integers(-9, 10, (6, 5)) // np.arange(1, 6)

    def shifted(row: int) -> np.ndarray:
        return tokens(row) + 2.0**23 * np.arange(-1, 4) / 4  # float32 holds these exactly

    one = shaped_store(tiny_manifest, tmp_path / "a.zarr", tokens, "float32")
    two = shaped_store(tiny_manifest, tmp_path / "b.zarr", shifted, "float32")
    plain, far = (token_colours(store, "1", np.arange(16))[0] for store in (one, two))
    np.testing.assert_allclose(plain, far, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "varying"),
    [
        (lambda row: np.full((6, 4), 0.1), 0),
        (lambda row: np.full((6, 1), row % 2), 1),
        (lambda row: np.random.default_rng(row).normal(size=(6, 2)), 2),
        (lambda row: np.arange(6)[:, None] * np.array([[3, 0, -4, 1.0]]), 1),
    ],
    ids=["constant", "width 1", "width 2", "rank 1"],
)
def test_missing_components_are_grey(tiny_manifest, tmp_path, tokens, varying):
    store = shaped_store(tiny_manifest, tmp_path / "store.zarr", tokens)
    rgb, share = token_colours(store, "1", np.array([0, 1, 2]))
    assert (rgb[..., varying:] == 0.5).all()
    for component in range(varying):
        assert (rgb[..., component].min(), rgb[..., component].max()) == (0, 1)
    assert share == pytest.approx(1.0 if varying else 0.0)


def test_a_few_extreme_tokens_do_not_grey_the_others_out_and_one_alone_shows() -> None:
    values = np.linspace(0, 1, 1001)
    values[:5] = -1e6, 1e6, 1e6, -1e6, 1e6
    scaled = pca._scaled(values)
    assert scaled[:5].tolist() == [0, 1, 1, 0, 1]
    assert np.ptp(scaled[100:900]) == pytest.approx(0.8, abs=0.03)
    assert pca._scaled(np.eye(1000)[7])[[7, 8]].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0,5,3", [0, 5, 3]),
        ("5,", [5]),
        (" 1 , 2", [1, 2]),
        ("1", [0]),
        ("3", [0, 8, 15]),
        ("60", list(range(16))),
    ],
)
def test_images_are_rows_or_a_count(text: str, rows: list[int]) -> None:
    assert chosen_rows(text, 16).tolist() == rows


@pytest.mark.parametrize(
    "text", ["", "0", "-1,", "16,", "1,x", "1,,2", ",", "1.5", "65", "²", "1" * 5000]
)
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(SpgError, match=r"--images .*: expected up to 64 row numbers.* The store"):
        chosen_rows(text, 16)


def test_a_given_mask_is_outlined_over_the_nearest_tokens(tiny_manifest, tmp_path):
    store = shaped_store(tiny_manifest, tmp_path / "grey.zarr", lambda row: np.ones((6, 3)))
    given = int(np.flatnonzero(store.array("mask_state") == 1)[0])
    draw_pca(store, tmp_path / "x.png", f"0,{given}")
    with Image.open(tmp_path / "x.png") as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    grey = pixels == 127  # the colour of tokens that are all alike
    lines, columns = (np.flatnonzero(grey.sum(axis=axis) > 100) for axis in (1, 0))
    plain, marked = (pixels[each][:, columns] for each in (lines[:320], lines[-320:]))
    assert np.unique(plain).tolist() == [127]  # one grey, no line
    mask = store.masks(np.array([given]))[0]
    outside = np.argwhere(marked != 127).mean(axis=0) / len(marked)
    np.testing.assert_allclose(outside, np.argwhere(mask).mean(axis=0) / len(mask), atol=0.06)
    assert set(np.unique(marked)) == {0, 127, 255}  # a white line and a black one around it


def test_a_row_an_image_a_column_a_layer_the_same_bytes_and_nothing_else(tiny_store, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tiny_store.path.rglob("*")}
    file, sizes, written = tmp_path / "x.PNG", [], []
    for images, layer in (("2", None), ("2", None), ("5", None), ("2", "2")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn = draw_pca(tiny_store, file, images, layer)
        assert list(drawn["explained"]) == ([layer] if layer else ["1", "2"])
        written.append(file.read_bytes())
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            sizes.append(np.array(picture.size))
    assert written[0] == written[1]
    assert sizes[2][1] - sizes[0][1] == 3 * (320 + 26)  # three more images
    assert sizes[0][0] - sizes[3][0] == 328  # one layer less
    assert [path.name for path in tmp_path.iterdir()] == ["x.PNG"]
    assert before == {path: path.stat().st_mtime_ns for path in tiny_store.path.rglob("*")}


def inspect(*arguments: object) -> dict:
    """What the command prints as JSON; raises what it raises."""
    given = ["inspect", *map(str, arguments), "--json"]
    return json.loads(CliRunner().invoke(app, given, catch_exceptions=False).output)


def test_the_command_draws_and_says_what(tiny_store: FeatureStore, tmp_path: Path) -> None:
    file = tmp_path / "tokens.png"
    said = inspect(tiny_store.path, "--pca", file, "--images", "1,4", "--layer", "2")
    assert said["images"] == 16
    assert said["pca"]["images"] == [1, 4]
    assert said["pca"]["file"] == str(file)
    assert 0 < said["pca"]["explained"]["2"] <= 1
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "3"], "add --pca FILE.png"),
        (["--layer", "1"], "add --pca FILE.png"),
        (["--pca", "x.svg"], r"x\.svg: expected .* ends in \.png"),
        (["--pca", "folder.png"], r"folder\.png: expected .* ends in \.png"),
        (["--pca", "nowhere/x.png"], r"nowhere/x\.png: expected .* a folder that is there"),
        (["--pca", "store.zarr/x.png"], "inside the store"),
        (["--pca", "link/x.png"], "inside the store"),
        (["--pca", "x.png", "--layer", "7"], "no layer '7'; it has 1, 2"),
        (["--pca", "x.png", "--images", "16,"], "rows 0 to 15"),
        (["--pca", "x.png"], r"the tokens of image 0 do not give their crc32c"),
    ],
)
def test_bad_options_and_damaged_tokens_are_refused_and_nothing_is_written(
    tiny_store, copy_of, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    place = copy_of(tiny_store.path)
    shard = place / "tokens_1/c/0/0/0"
    shard.write_bytes(np.float16(np.nan).tobytes() + shard.read_bytes()[2:])
    Path("folder.png").mkdir()
    Path("store.zarr").symlink_to(place)
    Path("link").symlink_to("store.zarr")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SpgError, match=message):
        inspect("store.zarr", *options)
    assert sorted(tmp_path.rglob("*")) == before

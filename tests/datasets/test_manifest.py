"""The Manifest: what it holds, its file, its fingerprint, and what goes wrong with either."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from layouts import scanned, write_mvtec, write_visa
from PIL import Image

from spg_pipe.datasets.manifest import COLUMNS, Manifest, MaskState
from spg_pipe.errors import DamagedError, SpgError


@pytest.fixture
def tree(tmp_path):
    return write_mvtec(tmp_path / "data", ("screw", "bottle"))


@pytest.fixture
def manifest(tree):
    return scanned("mvtec", "mvtec", tree)


def test_rows_are_sorted_by_category_then_good_then_defect_then_path(manifest):
    table = manifest.table
    assert list(table.columns) == list(COLUMNS)
    assert len(manifest) == 8
    assert table["path"].tolist() == [
        f"{category}/test/{rest}.png"
        for category in ("bottle", "screw")
        for rest in ("good/000", "good/001", "crack/000", "stain/000")
    ]
    assert table["label"].tolist() == [0, 0, 1, 1] * 2
    assert table["mask_state"].tolist() == [0, 0, 1, 1] * 2
    assert table["mask"].iloc[2] == "bottle/ground_truth/crack/000_mask.png"
    assert (table["height"].unique().tolist(), table["width"].unique().tolist()) == ([48], [64])
    assert table["mask_sha256"].map(len).tolist() == [0, 0, 64, 64] * 2


def test_a_file_gives_back_everything_but_the_root_in_the_documented_types(manifest, tmp_path):
    manifest.save(tmp_path / "deep" / "m.parquet")
    loaded = Manifest.load(tmp_path / "deep" / "m.parquet", tmp_path / "elsewhere")
    for name in ("dataset", "split", "layout", "licences", "notes", "exif"):
        assert getattr(loaded, name) == getattr(manifest, name)
    types = {"label": "uint8", "mask_state": "uint8", "height": "int32", "width": "int32"}
    for table in (manifest.table, loaded.table):
        assert {name: str(table[name].dtype) for name in types} == types
    pd.testing.assert_frame_equal(manifest.table, loaded.table)
    assert loaded.root == tmp_path / "elsewhere"
    assert loaded.fingerprint() == manifest.fingerprint()
    assert loaded.image_path(0) == tmp_path / "elsewhere/bottle/test/good/000.png"
    assert loaded.mask_path(0) is None
    assert manifest.mask_path(2).is_file()


def test_the_file_is_the_same_bytes_for_the_same_data_anywhere(tree, tmp_path):
    copy = shutil.copytree(tree, tmp_path / "copy")
    for image in copy.rglob("*.png"):
        os.utime(image, (0, 0))
    scanned("mvtec", "mvtec", tree).save(tmp_path / "a.parquet")
    scanned("mvtec", "mvtec", copy).save(tmp_path / "b.parquet")
    Manifest.load(tmp_path / "a.parquet", tree).save(tmp_path / "c.parquet")
    written = {(tmp_path / f"{name}.parquet").read_bytes() for name in "abc"}
    assert len(written) == 1
    assert str(tmp_path).encode() not in written.pop()


def test_the_fingerprint_follows_content_and_policy_but_not_notes_or_root(manifest, tmp_path):
    same = replace(manifest, root=tmp_path, notes=("a note",))
    assert same.fingerprint() == manifest.fingerprint()
    other_table = manifest.table.assign(sha256="0" * 64)
    for other in (
        replace(manifest, exif=True),
        replace(manifest, split="all"),
        replace(manifest, dataset="x"),
        replace(manifest, licences=("free",)),
        replace(manifest, table=other_table),
    ):
        assert other.fingerprint() != manifest.fingerprint()


@pytest.mark.parametrize(
    "what", ["bottle/test/good/000.png", "bottle/ground_truth/crack/000_mask.png"]
)
def test_changed_pixels_change_the_fingerprint(tree, manifest, what):
    pixels = 255 - np.asarray(Image.open(tree / what))
    Image.fromarray(pixels).save(tree / what)
    assert scanned("mvtec", "mvtec", tree).fingerprint() != manifest.fingerprint()


def test_progress_counts_every_image(tree):
    seen = []
    scanned("mvtec", "mvtec", tree, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 8) for i in range(8)]


def test_files_that_are_no_images_are_named_all_at_once(tree):
    bad = sorted(tree.rglob("test/*/*.png"))[:7]
    for image in bad:
        image.write_bytes(b"broken")
    with pytest.raises(SpgError) as caught:
        scanned("mvtec", "mvtec", tree)
    message = str(caught.value)
    assert message.startswith("7 images of 8 below")
    assert message.count("not an image of a known format") == 5
    assert "and 2 more" in message
    assert "Repair or remove them" in message


def test_a_repeated_set_is_refused(tree):
    write_mvtec(tree / "bottle", ("rod",))
    with pytest.raises(SpgError, match="4 images more than once: bottle/rod"):
        scanned("union", "mvtec", tree, sets=["bottle", "bottle"])


def test_a_union_prefixes_categories_and_paths_with_the_set(tmp_path):
    write_mvtec(tmp_path / "one", ("plate",))
    write_mvtec(tmp_path / "two", ("plate", "rod"), good=0)
    (tmp_path / "two" / "LICENSE.txt").write_text("free")
    (tmp_path / "one" / "plate" / "test" / "good" / "list.txt").write_text("")
    union = scanned("aux", "mvtec", tmp_path, sets=["two", "one"])
    assert union.table["category"].unique().tolist() == ["one/plate", "two/plate", "two/rod"]
    assert union.table["path"].iloc[0] == "one/plate/test/good/000.png"
    assert all((tmp_path / p).is_file() for p in union.table["path"])
    assert all((tmp_path / m).is_file() for m in union.table["mask"] if m)
    assert union.licences == ("two: as stated in LICENSE.txt of the dataset", "one: not stated")
    assert union.notes == (
        "one: plate: 1 file left out, not an image file: plate/test/good/list.txt",
    )
    only = scanned("aux", "mvtec", tmp_path, sets=["one", "two"], categories=["two/rod"])
    assert only.table["category"].unique().tolist() == ["two/rod"]
    assert len(only.licences) == 1
    with pytest.raises(SpgError, match=r"No folder for dataset aux at .*/three"):
        scanned("aux", "mvtec", tmp_path, sets=["one", "three"])
    with pytest.raises(
        SpgError, match=r"no category plate\. Did you mean one/plate\? It has: one/plate"
    ):
        scanned("aux", "mvtec", tmp_path, sets=["one"], categories=["plate"])


def test_a_given_licence_replaces_what_the_layout_says(tree):
    given = scanned("mvtec", "mvtec", tree, licence="CC0")
    assert given.licences == ("mvtec: CC0",)


def test_benchmark_layouts_ignore_exif_and_folder_honours_it(tmp_path):
    assert not scanned("m", "mvtec", write_mvtec(tmp_path / "m")).exif
    assert not scanned("v", "visa", write_visa(tmp_path / "v")).exif
    assert scanned("f", "folder", tmp_path / "m/screw/test").exif


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("mvtec", r"mvtec\.com"),
        ("visa", r"split_csv.*spot-diff"),
        ("folder", "set the root of m in"),
    ],
)
def test_a_missing_root_is_an_error_that_says_what_to_do(tmp_path, layout, message):
    with pytest.raises(SpgError, match=rf"(?s)No folder for dataset m at .*gone.*{message}"):
        scanned("m", layout, tmp_path / "gone")


def test_unknown_categories_are_an_error_that_lists_the_known(tree):
    with pytest.raises(SpgError, match=r"no category cable, nut\. It has: bottle, screw\."):
        scanned("m", "mvtec", tree, categories=["cable", "bottle", "nut"])


def test_categories_that_were_not_chosen_need_not_be_whole(tree):
    shutil.rmtree(tree / "screw" / "ground_truth")
    assert len(scanned("m", "mvtec", tree, categories=["bottle"])) == 4


def test_a_split_without_images_is_an_error(tmp_path):
    tree = write_mvtec(tmp_path, ("rod",), train=0)
    with pytest.raises(SpgError, match=r"no images in its train split \(rod\)"):
        scanned("m", "mvtec", tree, split="train")


def test_a_file_name_that_is_no_text_is_refused(tree):
    raw = os.fsencode(tree / "screw/test/good") + b"/\xff.png"
    shutil.copy(tree / "screw/test/good/000.png", os.fsdecode(raw))
    with pytest.raises(SpgError, match=r"\\xff\.png' is not valid UTF-8\. Rename"):
        scanned("m", "mvtec", tree)


def test_a_file_name_that_the_locale_garbles_is_refused(tree, monkeypatch):
    """As Python reads names where the locale is Latin-1."""
    shutil.copy(tree / "screw/test/good/000.png", tree / "screw/test/good/Ã¼.png")
    monkeypatch.setattr("os.fsencode", lambda name: str(name).encode("latin-1"))
    with pytest.raises(SpgError, match=r"good/ü\.png' for another.*PYTHONUTF8=1"):
        scanned("m", "mvtec", tree)


def test_loading_says_what_is_wrong_with_a_file(manifest, tmp_path):
    path = tmp_path / "m.parquet"

    def refused(message):
        with pytest.raises(SpgError, match=message) as caught:
            Manifest.load(path, tmp_path)
        return caught.type

    refused(r"no manifest at .*m\.parquet\. Make it with `spg-pipe prepare`")
    path.write_bytes(b"PAR1 is not enough")
    refused(r"m\.parquet is not a whole manifest: .*Parquet")
    pd.DataFrame({"a": [1]}).to_parquet(path)
    refused("it is a Parquet file, but not of spg-pipe")
    manifest.save(path)
    table = pq.read_table(path)
    metadata = table.schema.metadata[b"spg"]
    newer = metadata.replace(b'"format":2', b'"format":3')
    pq.write_table(table.replace_schema_metadata({b"spg": newer}), path)
    refused("has format 3, and this version of spg-pipe reads format 2")
    relicensed = metadata.replace(b"CC BY-NC-SA", b"CC0 1.0 and")
    pq.write_table(table.replace_schema_metadata({b"spg": relicensed}), path)
    assert refused(r"does not give its fingerprint.*`spg-pipe prepare` ag") is DamagedError
    pq.write_table(table.drop_columns(["sha256"]), path)
    refused("it has no column sha256")
    pq.write_table(table.slice(1), path)
    refused("its rows were edited or damaged")


def test_mask_states_are_the_numbers_of_the_store():
    assert [int(s) for s in (MaskState.EMPTY, MaskState.GIVEN, MaskState.MISSING)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("path", "../x.png", r"\.\./x\.png is outside the folder"),
        ("path", "/etc/passwd", "/etc/passwd is outside"),
        ("mask", "a/../../m.png", "is outside"),
        ("path", "", "an image has no path"),
        ("label", 7, "label is not one of 0, 1, 255"),
        ("mask_state", 9, "mask_state is not one of 0, 1, 2"),
        ("height", -5, "an image has no pixels"),
    ],
)
def test_a_strangers_row_that_no_prepare_writes_is_refused(manifest, tmp_path, column, value, says):
    """A stranger can give any rows their SHA-256 and the manifest its fingerprint."""
    table = manifest.table.copy()
    table.loc[0, column] = value
    replace(manifest, table=table).save(tmp_path / "m.parquet")
    with pytest.raises(SpgError, match=says):
        Manifest.load(tmp_path / "m.parquet", manifest.root)

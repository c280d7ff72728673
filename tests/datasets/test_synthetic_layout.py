"""Reading a synthetic set: a record or a file that is not as it was written is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from layouts import scanned, synthesised, write_mvtec
from PIL import Image

from datasets.test_synthetic import a_set
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.datasets.layouts.synthetic import RECORD, mask_of
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.images.files import source_id


def test_a_folder_that_only_looks_alike_is_refused(tmp_path: Path) -> None:
    root = a_set(tmp_path)
    (root / RECORD).unlink()
    with pytest.raises(
        SpgError, match=r"synthetic\.json does not exist\. Expected: the synthetic set"
    ):
        scanned("aux", "synthetic", root)
    with pytest.raises(SpgError, match=r"ROOT/synthetic\.json"):
        scanned("aux", "synthetic", tmp_path / "none")


def test_a_synthetic_set_is_no_plain_folder_and_has_no_training_split(tmp_path: Path) -> None:
    root = a_set(tmp_path)
    with pytest.raises(SpgError, match=r"this is the synthetic layout\. Use the layout synthetic"):
        scanned("aux", "folder", root)
    with pytest.raises(SpgError, match="knows no training split"):
        scanned("aux", "synthetic", root, split="train")


def rewrite(root: Path, change: Callable[[dict], object], *, sealed: bool) -> None:
    """Edit a set's record; `sealed` gives it the fingerprint of what it then says."""
    record = json.loads((root / RECORD).read_text())
    change(record)
    if sealed:
        beside = {key: record.pop(key) for key in ("files_sha256", "fingerprint")}
        record |= beside | {"fingerprint": fingerprint(record)}
    (root / RECORD).write_text(json.dumps(record))


def renamed(record: dict, path: str) -> None:
    """Give the first image another path."""
    first = next(iter(record["images"]))
    record["images"][path] = record["images"].pop(first)


@pytest.mark.parametrize(
    ("change", "sealed", "message"),
    [
        (lambda record: record["settings"].update(seed=7), False, "does not give its fingerprint"),
        (lambda record: record.update(format=3), False, "format 3, and .* reads format 2"),
        (lambda record: record.update(kind="demo"), False, "is of a demo. Expected: synthetic set"),
        (lambda record: record.update(images=[1]), True, "images: input should be an object"),
        (lambda record: record["source"].pop("images"), True, r"source\.images: field required"),
        (lambda record: renamed(record, "images/bottle/dent/0.png"), True, "match pattern"),
        (lambda record: renamed(record, "../parts/bottle/test/good/0.png"), True, "match pattern"),
        (
            lambda record: record["images"].update({"images/bottle/good/00000.png": "mine.png"}),
            True,
            "no source image: mine.png",
        ),
        (lambda record: record["images"].popitem(), True, "not named both with an image and with"),
    ],
)
def test_a_record_that_is_edited_or_not_whole_is_refused(change, sealed, message, tmp_path):
    root = a_set(tmp_path)
    rewrite(root, change, sealed=sealed)
    with pytest.raises(SpgError, match=message):
        scanned("aux", "synthetic", root)


@pytest.mark.parametrize("what", ["mask", "image"])
def test_an_edited_file_is_refused(what: str, tmp_path: Path) -> None:
    root = a_set(tmp_path)
    path = next(p for p in json.loads((root / RECORD).read_text())["images"] if mask_of(p))
    victim = root / (mask_of(path) if what == "mask" else path)
    Image.new("L", (64, 48)).save(victim)
    named = rf"{path} has a mask, {mask_of(path)}, that" if what == "mask" else path
    with pytest.raises(SpgError, match=rf"{named} was changed since its set was written"):
        scanned("aux", "synthetic", root)
    found = scanned("aux", "synthetic", root, skip_bad=True)
    assert [bad.path for bad in found.skipped] == [path]


def test_categories_keep_the_names_of_their_folders(tmp_path: Path) -> None:
    source = scanned("parts", "mvtec", write_mvtec(tmp_path / "p", ["große Teile (2)"]))
    synthesised(source, tmp_path / "set")
    found = scanned("aux", "synthetic", tmp_path / "set")
    assert set(found.table["category"]) == {"große Teile (2)"}


def test_every_image_knows_its_source_also_in_a_part_and_from_a_file(tmp_path: Path) -> None:
    root = a_set(tmp_path)
    source = scanned("parts", "mvtec", tmp_path / "parts")
    hashes = dict(zip(source.table["path"], source.table["sha256"], strict=True))
    made_from = json.loads((root / RECORD).read_text())["images"]
    found = scanned("aux", "synthetic", root).spread(4)
    found.save(tmp_path / "aux.parquet")
    for manifest in (found, Manifest.load(tmp_path / "aux.parquet", root)):
        assert manifest.own_sources == {
            path: source_id(hashes[made_from[path]]) for path in manifest.table["path"]
        }
    union = scanned("aux", "synthetic", tmp_path, sets=["set"])
    assert set(union.own_sources) == set(union.table["path"])


def test_missing_files_are_an_error_and_others_a_note(tmp_path: Path) -> None:
    root = a_set(tmp_path)
    Image.new("L", (64, 48)).save(root / "images" / "mine.png")
    _, note = scanned("aux", "synthetic", root).notes
    assert note == "1 image not of the set, ignored: images/mine.png"
    (root / "masks/bottle/perlin/00000-0.png").unlink()
    with pytest.raises(SpgError, match=r"1 file missing, masks/bottle/perlin/00000-0\.png"):
        scanned("aux", "synthetic", root)

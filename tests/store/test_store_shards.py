"""Single shards by processes of their own, and the finish (docs/scale.md): the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TinyBackbone, extracted, files, flip, manifest_of

from spg_pipe.errors import SpgError
from spg_pipe.store import claims, extract, writer
from spg_pipe.store.claims import claim, locked, ranges_of
from spg_pipe.store.extract import Extraction, SharedExtract
from spg_pipe.store.finish import finish_store
from spg_pipe.store.parts import LayerPart
from spg_pipe.store.reader import FeatureStore

HOW = Extraction(batch_images=4, shard_images=6)


def shared(manifest: Any, place: Path) -> SharedExtract:
    return SharedExtract(manifest, TinyBackbone(), place, HOW)


def shards(manifest: Any, place: Path, first: int, end: int) -> writer.ClaimedShards:
    return shared(manifest, place).compute(first, end)


def in_process(root: str, place: str, first: int, end: int) -> None:
    """The work of a plain process."""
    shards(manifest_of(Path(root)), Path(place), first, end)


def test_shards_in_any_order_and_overlapping_make_the_same_store(
    tiny_store, tiny_manifest, tmp_path
):
    place = tmp_path / "a.zarr"
    assert shards(tiny_manifest, place, 2, 3).written == [2]
    done = shards(tiny_manifest, place, 0, 3)
    assert (done.written, done.there, done.held) == ([0, 1], [2], [])
    with pytest.raises(SpgError, match="is not finished"):
        FeatureStore(place)
    assert len(finish_store(place)) == 16
    assert files(place) == files(tiny_store.path)
    assert [path.name for path in tmp_path.iterdir()] == [".a.zarr.lock", "a.zarr"]
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert finish_store(place).fingerprint == tiny_store.fingerprint
    assert shards(tiny_manifest, place, 1, 2).there == [1]
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_processes_side_by_side_make_the_same_store(tiny_store, tiny_images, tmp_path):
    place = tmp_path / "a.zarr"
    spawned = multiprocessing.get_context("spawn")
    given = [(str(tiny_images), str(place), *way) for way in ((0, 2), (0, 3), (1, 3))]
    processes = [spawned.Process(target=in_process, args=each) for each in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    finish_store(place)
    assert files(place) == files(tiny_store.path)


def test_a_shard_that_another_process_writes_is_left_to_it(tiny_store, tiny_manifest, tmp_path):
    place = tmp_path / "a.zarr"
    shards(tiny_manifest, place, 0, 1)
    code = (
        "import sys; from pathlib import Path; from spg_pipe.store.claims import claim;"
        "lock = claim(Path(sys.argv[1]), 1); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, place]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        done = shards(tiny_manifest, place, 0, 3)
        assert (done.written, done.there, done.held) == ([2], [0], [1])
        for call in (lambda: extracted(tiny_manifest, place), lambda: finish_store(place)):
            with pytest.raises(SpgError, match=r"writing shards of .*a\.zarr \(1:2\)"):
                call()
        other.kill()
    assert shards(tiny_manifest, place, 0, 3).written == [1]
    finish_store(place)
    assert files(place) == files(tiny_store.path)


def test_a_plain_extract_and_writers_of_shards_refuse_each_other(
    tiny_store, tiny_manifest, tmp_path, monkeypatch
):
    place = tmp_path / "a.zarr"
    monkeypatch.setattr("spg_pipe.store.begin.PATIENCE", 0)
    monkeypatch.setattr(writer, "PATIENCE", 0)
    whole = locked(place)
    with pytest.raises(SpgError, match=r"Another process is writing .*a\.zarr"):
        shards(tiny_manifest, place, 0, 1)
    whole.release()
    shards(tiny_manifest, place, 0, 1)
    backbone = TinyBackbone()
    assert files(extracted(tiny_manifest, place, backbone=backbone).path) == files(tiny_store.path)
    assert backbone.calls == 4  # asked for the shapes, and the first shard was there


def test_a_store_that_is_replaced_meanwhile_is_one_refusal(tiny_manifest, tmp_path):
    place = tmp_path / "a.zarr"
    shards(tiny_manifest, place, 0, 1)
    spec = shared(tiny_manifest, place).spec
    shutil.rmtree(place)
    with (
        writer.ClaimedShards(place, spec) as claims,
        pytest.raises(SpgError, match="was removed or replaced"),
    ):
        list(claims.claimed(range(spec.shards)))


def test_a_store_is_begun_once_and_its_shards_are_checked_by_who_takes_them(
    tiny_store, tiny_manifest, tmp_path
):
    place = tmp_path / "a.zarr"
    work = shared(tiny_manifest, place)
    assert work.begin() == range(3)
    work.compute(1, 3)
    flip(place / "tokens_1/c/1/0/0")
    (place / "tokens_1/c/0/0").mkdir(parents=True)
    (place / "tokens_1/c/0/0/.0.4194303.tmp").write_bytes(b"half")
    assert work.begin() == range(3)
    assert not (place / "tokens_1/c/0").exists()
    done = work.compute(0, 3)
    assert (done.written, done.there) == ([0, 1], [2])
    finish_store(place)
    assert work.begin() == range(0)
    assert files(place) == files(tiny_store.path)


def test_other_libraries_than_those_that_began_the_store_are_refused(
    tiny_manifest, tmp_path, monkeypatch
):
    place = tmp_path / "a.zarr"
    shards(tiny_manifest, place, 0, 1)
    true = extract.versions()
    monkeypatch.setattr(extract, "versions", lambda: true | {"torch": "1.0", "gpu": "any"})
    with pytest.raises(
        SpgError, match=rf"other versions \(torch 1\.0, not {true['torch'][:4]}.*--out"
    ):
        shards(tiny_manifest, place, 1, 2)
    monkeypatch.setattr(extract, "versions", lambda: true | {"gpu": "any"})
    assert shards(tiny_manifest, place, 1, 2).written == [1]


def test_missing_shards_are_named_with_the_command(tiny_manifest, tmp_path):
    place = tmp_path / "a.zarr"
    shards(tiny_manifest, place, 1, 2)
    with pytest.raises(SpgError, match=r"lacks 2 of its 3 shards: 0:1, 2:3\..*--shards 0:1"):
        finish_store(place)
    (place / "tokens_1/c/1/0/0").write_bytes(b"short")
    with pytest.raises(SpgError, match=r"lacks 3 of its 3 shards: 0:3\."):
        finish_store(place)
    assert shards(tiny_manifest, place, 1, 2).written == [1]
    with pytest.raises(SpgError, match=r"b\.zarr does not exist"):
        finish_store(tmp_path / "b.zarr")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"")
    with pytest.raises(SpgError, match="is not a feature store"):
        finish_store(tmp_path / "other")


@pytest.mark.parametrize("bounds", [(0, 4), (3, 4), (2, 2), (2, 1), (-1, 1)])
def test_shards_that_are_none_are_refused_before_anything_is_begun(tiny_manifest, tmp_path, bounds):
    with pytest.raises(SpgError, match=r"has 3 shards \(6 images each\).*0 ≤ A < B ≤ 3"):
        shards(tiny_manifest, tmp_path / "a.zarr", *bounds)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["", "/"])
def test_a_folder_that_is_no_place_of_its_own_is_refused(tiny_manifest, tmp_path, place):
    with chdir(tmp_path), pytest.raises(SpgError, match="is no place for a store"):
        shards(tiny_manifest, Path(place), 0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_a_store_is_refused(tiny_manifest, tmp_path):
    """Its store would have another lock, and another content would replace the link."""
    (tmp_path / "a.zarr").symlink_to(tmp_path / "b.zarr")
    with pytest.raises(SpgError, match=r"a\.zarr is a link to .*b\.zarr; a store"):
        shards(tiny_manifest, tmp_path / "a.zarr", 0, 1)
    with pytest.raises(SpgError, match=r"is a link to"):
        extracted(tiny_manifest, tmp_path / "a.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_folder_in_which_no_lock_can_be_made_is_no_other_process(tiny_manifest):
    with pytest.raises(SpgError, match=r"cannot be written\. No such file or directory: /proc/a"):
        extracted(tiny_manifest, Path("/proc/a.zarr"))


def test_a_finished_store_is_finished_where_no_lock_can_be_made(tiny_store, monkeypatch):
    monkeypatch.setattr("spg_pipe.store.finish.holding", None)
    assert finish_store(tiny_store.path).fingerprint == tiny_store.fingerprint


def test_a_folder_whose_name_fsspec_would_take_for_two_is_one(tiny_store, tiny_manifest, tmp_path):
    place = tmp_path / "a::b.zarr"
    shards(tiny_manifest, place, 0, 3)
    finish_store(place)
    assert files(place) == files(tiny_store.path)


@pytest.mark.parametrize("damage", ["tokens", "record", "other record", "table"])
def test_what_is_damaged_before_the_finish_is_made_again(
    tiny_store, tiny_manifest, tmp_path, damage
):
    place = tmp_path / "a.zarr"
    shards(tiny_manifest, place, 0, 3)
    record = place / "parts" / "1.json"
    if damage == "tokens":
        flip(place / "tokens_1/c/1/0/0")
    elif damage == "record":
        record.write_bytes(record.read_bytes()[:-9])
    elif damage == "other record":
        shutil.copy(place / "parts" / "0.json", record)
    else:
        flip(place / "label/c/0", byte=10)
        with pytest.raises(SpgError, match=r"label/c/0 is damaged.*spg-pipe extract"):
            finish_store(place)
        extracted(tiny_manifest, place)
    done = shards(tiny_manifest, place, 0, 3)
    assert done.written == ([] if damage == "table" else [1])
    finish_store(place)
    assert files(place) == files(tiny_store.path)


def test_a_store_that_an_older_version_left_unfinished_goes_on(
    tiny_store, tiny_manifest, tmp_path, copy_of
):
    """It kept its finished shards in shards.json, and no records."""
    place = copy_of(tiny_store.path)
    index = json.loads((place / "shards.json").read_text())
    index["files"] = [e for e in index["files"] if e["images"][1] <= 6 and "_" in e["name"][:7]]
    index["files"] += [
        e
        for e in json.loads((place / "shards.json").read_text())["files"]
        if e["name"] == "mask/c/0/0/0"
    ]
    (place / "shards.json").write_text(json.dumps(index))
    group = json.loads((place / "zarr.json").read_text())
    group["attributes"]["complete"] = False
    del group["consolidated_metadata"]
    (place / "zarr.json").write_text(json.dumps(group))
    for name in ("label", "lost_regions", "mean_1", "tokens_1/c/1"):
        shutil.rmtree(place / name)
    for call in (lambda: shards(tiny_manifest, place, 0, 1), lambda: finish_store(place)):
        with pytest.raises(SpgError, match=r"older version.*spg-pipe extract"):
            call()
    backbone = TinyBackbone()
    assert files(extracted(tiny_manifest, place, backbone=backbone).path) == files(tiny_store.path)
    assert backbone.calls == 4


def test_a_resumed_run_reads_no_tokens_for_the_statistics(tiny_manifest, tmp_path, monkeypatch):
    place = tmp_path / "a.zarr"
    shards(tiny_manifest, place, 0, 2)
    asked: list[int] = []
    true = writer.ShardStatistics.of
    monkeypatch.setattr(
        writer.ShardStatistics, "of", lambda tokens: asked.append(len(tokens)) or true(tokens)
    )
    extracted(tiny_manifest, place)
    assert asked == [4, 4]  # the two layers of the last shard


def test_sums_come_back_to_the_bit():
    generator = random.Random(0)  # noqa: S311 - any bits
    bits = [generator.getrandbits(64) for _ in range(20_000)]
    values = np.array(bits, np.uint64).view(np.float64)
    values = values[np.isfinite(values)].tolist()
    part = LayerPart(total=tuple(values), squares=(0.0, -0.0, 5e-324), checksums=())
    again = LayerPart.model_validate_json(json.dumps(part.model_dump(mode="json")), strict=True)
    for held, read in ((part.total, again.total), (part.squares, again.squares)):
        assert np.array(held).tobytes() == np.array(read).tobytes()


def test_ranges_are_as_the_option_takes_them():
    assert ranges_of([4, 0, 1, 2]) == "0:3, 4:5"
    assert ranges_of(list(range(0, 14, 2))) == "0:1, 2:3, 4:5, 6:7, 8:9 and 2 more ranges"


def test_a_claim_is_given_back_by_another_thread(tmp_path):
    place = tmp_path / "a.zarr"
    first = claim(place, 3)
    assert first is not None
    assert claim(place, 3) is None
    first.release()
    claims.require_unclaimed(place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "inner", ["tokens_1", "tokens_1/c", "tokens_1/c/1", "lost_regions", "parts"]
)
def test_nothing_is_written_through_a_link_in_an_unfinished_store(tiny_manifest, tmp_path, inner):
    place, outside = tmp_path / "a.zarr", tmp_path / "outside"
    shards(tiny_manifest, place, 0, 1)
    outside.mkdir()
    if (place / inner).exists():
        shutil.move(place / inner, outside / "moved")
    (place / inner).parent.mkdir(parents=True, exist_ok=True)
    (place / inner).symlink_to(outside / "moved" if any(outside.iterdir()) else outside)
    before = files(outside)
    for work in (lambda: shards(tiny_manifest, place, 1, 3), lambda: finish_store(place)):
        with pytest.raises(SpgError, match=r"is a link to .*remove it|lacks 2 of its 3 shards"):
            work()
    assert files(outside) == before


def test_locks_of_others_stay_and_a_link_to_a_folder_of_them_is_refused(tiny_manifest, tmp_path):
    place, locks, outside = tmp_path / "a.zarr", tmp_path / ".a.zarr.locks", tmp_path / "outside"
    shards(tiny_manifest, place, 0, 3)
    locks.mkdir(exist_ok=True)
    (locks / "mine.lock").touch()
    finish_store(place)
    assert (locks / "mine.lock").exists()
    shutil.move(locks, outside)
    (outside / "7.lock").touch()
    locks.symlink_to(outside)
    (place / "parts").mkdir()  # as a finish leaves it that is killed
    with pytest.raises(SpgError, match="is a link to"):
        finish_store(place)
    assert (outside / "7.lock").exists()

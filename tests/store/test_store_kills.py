"""Killed writers and two writers, as processes of their own (docs/store.md, "Guarantees")."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from tiny import TinyBackbone, extracted, files, flip

from benchmarks import kill_extract
from spg_pipe.errors import SpgError
from spg_pipe.store import shards
from spg_pipe.store.claims import locked


@pytest.mark.slow
def test_a_killed_extract_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    # One moment and half the images; `python -m benchmarks.kill_extract` tries twenty.
    monkeypatch.setattr(kill_extract, "IMAGES", 10)
    assert kill_extract.run(1, seed=10, folder=tmp_path) == 0


def test_a_second_writer_is_refused_while_the_first_lives(tiny_manifest, tmp_path):
    place = tmp_path / "a.zarr"
    code = (
        "import sys; from pathlib import Path; from spg_pipe.store.claims import locked;"
        "lock = locked(Path(sys.argv[1])); "
        "print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SpgError, match=r"Another process is writing .*a\.zarr.*--out"):
            extracted(tiny_manifest, place)
        assert not place.exists()
        other.kill()
    extracted(tiny_manifest, place)
    lock = locked(place)  # a finished store is read while it is locked
    backbone = TinyBackbone()
    assert len(extracted(tiny_manifest, place, backbone=backbone)) == 16
    assert backbone.calls == 1
    lock.release()


def test_what_a_killed_writer_left_and_a_damaged_shard_are_mended(
    tiny_store, tiny_manifest, tmp_path
):
    place = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        extracted(tiny_manifest, place, backbone=TinyBackbone(fail_after=5), workers=1)
    flip(place / "tokens_1/c/0/0/0")
    for name in ("tokens_1/c/2/0/.0.4194303.tmp", "parts/.2.json.4194303.tmp", "own/c/0"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"half")
    assert files(extracted(tiny_manifest, place).path) == files(tiny_store.path)


def test_a_full_disk_is_one_message_and_the_store_resumes(
    tiny_store, tiny_manifest, tmp_path, monkeypatch
):
    true, calls = shards.write_bytes, iter(range(99))

    def full(*given: Any) -> None:
        if next(calls) > 13:  # in the second shard: there is a table of 7 files, a shard has 5
            raise OSError(28, "No space left on device", str(given[0]))
        true(*given)

    monkeypatch.setattr(shards, "write_bytes", full)
    with pytest.raises(
        SpgError, match=r"cannot be written.*No space left.*Make room.*--out.*goes on"
    ):
        extracted(tiny_manifest, tmp_path / "a.zarr")
    monkeypatch.undo()
    backbone = TinyBackbone()
    again = extracted(tiny_manifest, tmp_path / "a.zarr", backbone=backbone)
    assert files(again.path) == files(tiny_store.path)
    assert backbone.calls < 6  # the first shard was kept

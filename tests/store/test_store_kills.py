"""Killed writers and two writers, as processes of their own (docs/store.md, "Guarantees")."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TinyBackbone, extracted, files, flip

from benchmarks import kill_extract
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.store import shards
from spg_pipe.store.reader import FeatureStore


@pytest.mark.slow
def test_a_killed_extract_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One moment and half the images; `python -m benchmarks.kill_extract` tries twenty.
    monkeypatch.setattr(kill_extract, "IMAGES", 30)
    assert kill_extract.run(1, seed=10, folder=tmp_path) == 0


def test_a_second_writer_waits_for_no_lock_and_reads_what_is_finished(
    tiny_manifest: Manifest, tmp_path: Path
) -> None:
    place, finished = tmp_path / "a.zarr", tmp_path / "finished.zarr"
    extracted(tiny_manifest, finished)
    code = (
        "import sys; from pathlib import Path; from spg_pipe.store.writer import locked;"
        "locks = [locked(Path(name)) for name in sys.argv[1:]]; "
        "print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, place, finished], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SpgError, match=r"Another process is writing .*a\.zarr.*--out"):
            extracted(tiny_manifest, place)
        assert not place.exists()
        backbone = TinyBackbone()
        assert len(extracted(tiny_manifest, finished, backbone=backbone)) == 16
        assert backbone.calls == 1
        other.kill()
    assert len(extracted(tiny_manifest, place)) == 16


def test_what_a_killed_writer_left_and_a_damaged_shard_are_mended(
    tiny_store: FeatureStore, tiny_manifest: Manifest, tmp_path: Path
) -> None:
    place = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        extracted(tiny_manifest, place, backbone=TinyBackbone(fail_after=5), workers=1)
    flip(place / "tokens_1/c/0/0/0")
    for name in ("tokens_1/c/2/0/.0.4194303.tmp", "label/c/0"):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(b"half")
    assert files(extracted(tiny_manifest, place).path) == files(tiny_store.path)


def test_a_full_disk_is_one_message_and_the_store_resumes(
    tiny_store: FeatureStore,
    tiny_manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = shards.write_bytes
    left = iter(range(7))  # to the second shard: a shard has five files and an entry

    def full(*arguments: object) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device", str(arguments[0]))
        true(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "write_bytes", full)
    with pytest.raises(SpgError, match=r"cannot be written.*No space left.*--out.*goes on"):
        extracted(tiny_manifest, tmp_path / "a.zarr")
    monkeypatch.undo()
    backbone = TinyBackbone()
    again = extracted(tiny_manifest, tmp_path / "a.zarr", backbone=backbone)
    assert files(again.path) == files(tiny_store.path)
    assert backbone.calls < 6  # the first shard was kept

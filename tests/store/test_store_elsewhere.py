"""Shards of a store that are put into a bucket (docs/scale.md, "Writing"): the bytes of a folder,
whoever dies meanwhile."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bucket import KEY, URL, Bucket, serving
from tiny import TinyBackbone, extracted, files, manifest_of

from spg_pipe.artefacts.reading import unreadable
from spg_pipe.errors import DamagedError, SpgError
from spg_pipe.store.elsewhere import ShardsElsewhere
from spg_pipe.store.extract import Extraction, SharedExtract
from spg_pipe.store.files import StoreFiles
from spg_pipe.store.finish import finish_store
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.verify import require_intact, verify

HOW = Extraction(batch_images=4, shard_images=6)
RECORD = "a.zarr/parts/1.json"
NEXT = r"See that the address is right, its server answers, and .* credentials"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with serving(Bucket()) as each:
        for name, value in (KEY | {"AWS_ALLOW_HTTP": "true"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", each.address)
        yield each


def shards(
    manifest: Any, first: int, end: int, *, url: str = URL, scale: float = 1.0
) -> ShardsElsewhere:
    done = SharedExtract(manifest, TinyBackbone(scale), url, HOW).compute(first, end)
    assert isinstance(done, ShardsElsewhere)
    return done


def in_process(root: str, first: int, end: int) -> None:
    """The work of a plain process."""
    shards(manifest_of(Path(root)), first, end)


def started(root: Path, first: int, end: int) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=in_process, args=(str(root), first, end)
    )
    process.start()
    return process


def test_two_processes_whose_shards_overlap_make_the_store_of_a_folder(
    bucket, tiny_store, tiny_images
):
    both = [started(tiny_images, 0, 2), started(tiny_images, 1, 3)]
    for each in both:
        each.join()
    assert [each.exitcode for each in both] == [0, 0]
    with pytest.raises(SpgError, match="is not finished"):
        FeatureStore(URL)
    assert np.array_equal(finish_store(URL).masks(np.arange(16)), tiny_store.masks(np.arange(16)))
    assert bucket.below("a.zarr") == files(tiny_store.path)
    assert verify(URL) == []


@pytest.mark.parametrize("name", ["zarr.json", "tokens_2/c/1/0/0", "parts/1.json"])
def test_a_writer_that_is_killed_leaves_a_store_to_go_on_with(
    bucket, tiny_store, tiny_manifest, tiny_images, name
):
    def kill(put: str) -> bool:
        if put.endswith(f"a.zarr/{name}"):
            writer.kill()  # joined below alone: of two threads that wait, one is told nothing
            return False
        return True

    bucket.before = kill
    writer = started(tiny_images, 0, 3)
    writer.join(300)
    assert writer.exitcode == -9
    bucket.before = lambda name: True
    done = shards(tiny_manifest, 0, 3)
    assert done.there == ([0] if name in ("tokens_2/c/1/0/0", "parts/1.json") else [])
    finish_store(URL)
    assert bucket.below("a.zarr") == files(tiny_store.path)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ["zarr.json", "prefix_1/c/0/0/0", "parts/2.json", "shards.json"])
def test_a_server_that_dies_in_the_midst_of_a_put_is_one_message_and_the_store_goes_on(
    bucket, tiny_store, tiny_manifest, monkeypatch, name, moment
):
    monkeypatch.setattr("spg_pipe.store.files._RETRIES", {"max_retries": 0})
    setattr(bucket, moment, lambda put: not put.endswith(f"a.zarr/{name}"))
    with pytest.raises(SpgError, match=rf"{URL}/{name} cannot be written: .*{NEXT}"):
        shards(tiny_manifest, 0, 3)
    setattr(bucket, moment, lambda put: True)
    shards(tiny_manifest, 0, 3)
    setattr(bucket, moment, lambda put: not put.endswith("a.zarr/zarr.json"))
    with pytest.raises(SpgError, match=rf"{URL}/zarr.json cannot be written"):
        finish_store(URL)
    setattr(bucket, moment, lambda put: True)
    finish_store(URL)
    assert bucket.below("a.zarr") == files(tiny_store.path)
    before = list(bucket.puts)
    assert (shards(tiny_manifest, 0, 3).there, len(finish_store(URL))) == ([0, 1, 2], 16)
    assert bucket.puts == before


def test_a_put_whose_answer_was_lost_is_tried_again_and_is_well(bucket, tiny_store, tiny_manifest):
    lost = set()

    def lose(name: str) -> bool:
        known = name in lost
        lost.add(name)
        return known

    bucket.after = lose
    shards(tiny_manifest, 0, 1)
    bucket.after = lambda name: True
    shards(tiny_manifest, 0, 3)
    finish_store(URL)
    assert bucket.below("a.zarr") == files(tiny_store.path)


def test_files_of_another_processor_stay_and_are_what_is_recorded(
    bucket, tiny_manifest, monkeypatch
):
    monkeypatch.setattr("spg_pipe.store.files._RETRIES", {"max_retries": 0})
    for compressor in ("none", "zstd"):
        bucket.objects.clear()
        how = Extraction(4, 6, compressor=compressor)
        other = SharedExtract(tiny_manifest, TinyBackbone(1.001), URL, how)
        bucket.before = lambda name: name != RECORD
        with pytest.raises(SpgError, match="cannot be written"):
            other.compute(1, 2)
        bucket.before = lambda name: True
        theirs = dict(bucket.objects)
        done = SharedExtract(tiny_manifest, TinyBackbone(), URL, how).compute(0, 3)
        assert done.written == [0, 1, 2]
        finish_store(URL)
        assert verify(URL) == []
        tokens = "a.zarr/tokens_1/c/1/0/0"
        assert bucket.objects[tokens] == theirs[tokens]
        store = FeatureStore(URL, plain=True)
        whole = store.tokens("1", np.arange(16)).astype(np.float64)
        assert np.allclose(store.array("mean_1"), whole.mean(axis=(0, 1)))


def test_a_shard_whose_file_was_removed_is_computed_again(bucket, tiny_store, tiny_manifest):
    shards(tiny_manifest, 0, 3)
    del bucket.objects["a.zarr/tokens_1/c/1/0/0"]
    with pytest.raises(SpgError, match=rf"{URL} lacks 1 of its 3 shards: 1:2"):
        finish_store(URL)
    assert shards(tiny_manifest, 0, 3).written == [1]
    finish_store(URL)
    assert bucket.below("a.zarr") == files(tiny_store.path)
    del bucket.objects["a.zarr/mask/c/2/0/0"]
    with pytest.raises(SpgError, match=r"mask/c/2/0/0 .* is missing.*Remove it with"):
        shards(tiny_manifest, 0, 3)


def test_what_is_in_the_place_is_never_written_over(bucket, tiny_manifest, tiny_images):
    other = TinyBackbone(weights_sha256="1" * 64)
    SharedExtract(tiny_manifest, other, URL, HOW).compute(0, 1)
    kept = dict(bucket.objects)
    with pytest.raises(SpgError, match=r"other content \(backbone differs.*Remove it with"):
        shards(tiny_manifest, 0, 3)
    assert bucket.objects == kept
    metadata = json.loads(bucket.objects["a.zarr/zarr.json"])
    metadata["attributes"]["versions"]["torch"] = "0.1"
    bucket.objects["a.zarr/zarr.json"] = json.dumps(metadata).encode()
    with pytest.raises(SpgError, match=r"begun with other versions \(torch .*, not 0\.1 here\)"):
        SharedExtract(tiny_manifest, other, URL, HOW).compute(0, 1)
    bucket.objects["a.zarr/zarr.json"] = b"{"
    with pytest.raises(SpgError, match=r"zarr\.json is damaged, or of something else"):
        shards(tiny_manifest, 0, 3)
    bucket.objects = {"a.zarr/path/c/0": b"theirs"}
    with pytest.raises(SpgError, match=r"a\.zarr/path/c/0 is of another store"):
        shards(tiny_manifest, 0, 3)
    assert bucket.objects["a.zarr/path/c/0"] == b"theirs"


def test_a_server_that_would_overwrite_is_refused(bucket, tiny_manifest):
    bucket.conditional = False
    with pytest.raises(SpgError, match=r"does not know conditional puts.*copy it there"):
        shards(tiny_manifest, 0, 3)
    assert bucket.objects == {}


@pytest.mark.parametrize(
    ("variable", "value", "url", "message"),
    [
        ("AWS_ACCESS_KEY_ID", "other", URL, NEXT),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", URL, NEXT),
        ("AWS_ENDPOINT_URL", "127.0.0.1:9", URL, "is no address of a server: expected"),
        ("AWS_ENDPOINT_URL", "http://geheim@h", URL, "is no address of a server"),
        ("AWS_ENDPOINT", "http://127.0.0.1:65536", URL, "AWS_ENDPOINT is no address"),
        ("AWS_ENDPOINT_URL_S3", "", URL, "AWS_ENDPOINT_URL_S3 is no address"),
        ("AWS_ENDPOINT", "http://127.0.0.1:9 ", URL, "without blanks"),
        ("AWS_REGION", "x y", URL, "AWS_REGION is no region: expected"),
        ("AWS_ALLOW_HTTP", "0", URL, "without TLS. Set AWS_ALLOW_HTTP=true"),
        ("AWS_REGION", "r", "s3://none/a.zarr", "no such bucket or folder. Make it with"),
        ("AWS_REGION", "r", "s3://key:geheim@bucket/a.zarr", "holds a password or a query"),
        ("AWS_REGION", "r", "https://geheim@host/a.zarr", "holds a password or a query"),
    ],
)
def test_what_hinders_is_one_message_without_a_secret(
    bucket, tiny_manifest, monkeypatch, variable, value, url, message
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SpgError, match=message) as error:
        shards(tiny_manifest, 0, 3, url=url)
    assert "geheim" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert bucket.objects == {}


def test_a_long_address_leaves_room_for_the_cause():
    error = OSError(f"Generic error: PUT http://host/{'x' * 300} in 3 ms - status 403 Forbidden")
    assert "403 Forbidden" in str(unreadable("s3://bucket/a.zarr", error))


def test_a_damaged_store_is_not_to_be_replaced_where_nothing_is(bucket, tiny_manifest):
    extracted(tiny_manifest, URL)
    name = next(name for name in bucket.objects if name.endswith("tokens_1/c/0/0/0"))
    bucket.objects[name] = bytes(len(bucket.objects[name]))
    with pytest.raises(DamagedError, match=r"remove the store with the tool of its") as error:
        FeatureStore(URL).tokens("1", np.arange(6))
    assert "--replace" not in str(error.value)
    with pytest.raises(SpgError, match=r"To mend it, remove the store with the tool") as error:
        require_intact(URL, ["it is damaged"])
    del bucket.objects[name]
    with pytest.raises(SpgError, match=r"to mend it, remove the store with the tool") as error:
        FeatureStore(URL)


def test_no_secret_is_in_what_is_written(bucket, tiny_manifest):
    extracted(tiny_manifest, URL)
    assert not [name for name, data in bucket.objects.items() if b"geheim" in data]


def test_a_file_system_of_fsspec_is_written_to_as_well(tiny_store, tiny_manifest):
    url = "memory://bucket/a.zarr"
    shards(tiny_manifest, 1, 2, url=url)
    with pytest.raises(SpgError, match=r"memory://bucket/a\.zarr lacks 2 of its 3 shards"):
        finish_store(url)
    assert extracted(tiny_manifest, url).fingerprint == tiny_store.fingerprint
    written, local = StoreFiles(url), files(tiny_store.path)
    assert {name: written.read(name) for name in local} == local
    assert written.size("parts/0.json") is None

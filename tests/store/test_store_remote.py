"""A store behind a web server: the same tokens, or one message with the address and the cause."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from tiny import files

from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.verify import verify

ROWS = np.array([0, 9])


@dataclass
class Server:
    """Files in memory behind HTTP, and what is wrong with the server."""

    files: dict[str, bytes]
    ranges: bool = True
    lengths: bool = True
    status: dict[str, int] = field(default_factory=dict)
    """Name → answer instead of the file."""
    cut: str = ""
    """Name of a file whose answers end too soon."""
    url: str = ""


@pytest.fixture
def server(tiny_store: FeatureStore) -> Iterator[Server]:
    content = Server({f"/t.zarr/{name}": data for name, data in files(tiny_store.path).items()})

    class Handler(BaseHTTPRequestHandler):
        def answer(self, *, body: bool) -> None:
            data = content.files.get(self.path)
            status = content.status.get(self.path, 200 if data is not None else 404)
            if status != 200 or data is None:
                self.send_error(status)
                return
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            part = ""
            if asked and content.ranges:
                first, last = asked.groups()
                end = int(last) + 1 if last and first else len(data)
                start = int(first) if first else len(data) - int(last)
                part = f"bytes {start}-{end - 1}/{len(data)}"
                data, status = data[start:end], 206
            self.send_response(status)
            if part:
                self.send_header("Content-Range", part)
            self.send_header("Last-Modified", "Sun, 29 Nov 2026 12:00:00 GMT")
            self.send_header("ETag", '"1"')
            if content.lengths:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if self.path == content.cut else data)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        content.url = f"http://127.0.0.1:{http.server_port}/t.zarr"
        thread = Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield content
        http.shutdown()


def test_a_server_with_ranges_gives_the_bits_of_a_local_store(server, tiny_store):
    remote = FeatureStore(server.url)
    assert np.array_equal(remote.tokens("1", ROWS), tiny_store.tokens("1", ROWS))
    assert np.array_equal(remote.masks(ROWS), tiny_store.masks(ROWS))
    assert remote.table.equals(tiny_store.table)
    assert verify(server.url) == []


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same server as one of S3: credentials and its address are of the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.removesuffix("/t.zarr"))
    settings = {"ALLOW_HTTP": "true", "VIRTUAL_HOSTED_STYLE_REQUEST": "true", "REGION": "r"}
    settings |= {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "geheim"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return "s3://bucket/t.zarr"


def test_an_object_store_gives_the_bits_of_a_local_store(bucket, server, tiny_store):
    remote = FeatureStore(bucket)
    assert np.array_equal(remote.tokens("1", ROWS), tiny_store.tokens("1", ROWS))
    plain = FeatureStore(bucket, plain=True)
    assert np.array_equal(plain.tokens("1", ROWS), tiny_store.tokens("1", ROWS))
    assert np.array_equal(remote.masks(ROWS), tiny_store.masks(ROWS))
    assert remote.table.equals(tiny_store.table)
    sent = pickle.dumps(remote.token_array("1"))
    assert b"geheim" not in sent
    again = pickle.loads(sent)  # noqa: S301
    assert np.array_equal(again[9,], tiny_store.tokens("1", np.array([9]))[0])
    with pytest.raises(SpgError, match=r"s3://bucket/x\.zarr is not a feature store"):
        FeatureStore("s3://bucket/x.zarr")


def test_an_object_store_that_refuses_is_one_message_without_its_key(bucket, server):
    server.status = {"/t.zarr/shards.json": 403}
    with pytest.raises(SpgError, match=r"s3://bucket/t\.zarr/shards\.json cannot be read") as error:
        FeatureStore(bucket)
    assert not isinstance(error.value, DamagedError | NotThereError)
    assert "geheim" not in str(error.value)
    server.status = {}
    remote = FeatureStore(bucket)
    del server.files["/t.zarr/tokens_1/c/1/0/0"], server.files["/t.zarr/label/c/0"]
    for read in (lambda: remote.tokens("1", ROWS), lambda: remote.array("label")):
        with pytest.raises(DamagedError, match="is missing"):
            read()


def test_a_server_without_ranges_is_one_message(server):
    server.ranges = False
    remote = FeatureStore(server.url)
    message = rf"{server.url}/tokens_1/c/0/0/0: .*whole file.*Range requests.*copy the store"
    with pytest.raises(SpgError, match=message):
        remote.tokens("1", ROWS)
    assert len(remote.table) == 16  # whole files are read


@pytest.mark.parametrize(
    "name", ["tokens_1/c/1/0/0", "mask/c/1/0/0", "prefix_1/c/1/0/0", "label/c/0"]
)
def test_a_file_that_is_lost_meanwhile_is_never_read_as_fill_values(server, name):
    remote = FeatureStore(server.url)
    del server.files[f"/t.zarr/{name}"]
    with pytest.raises(DamagedError, match=rf"{server.url}/{name} .*missing"):
        _ = remote.tokens("1", ROWS), remote.masks(ROWS), remote.cls("1", ROWS), remote.table


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": {"/t.zarr/zarr.json": 500}}, r"/t\.zarr/zarr\.json cannot be read: 500"),
        ({"status": {"/t.zarr/shards.json": 403}}, r"/t\.zarr/shards\.json cannot be read: 403"),
        ({"status": {"/t.zarr/mask/c/0/0/0": 503}}, r"mask/c/0/0/0 cannot be read: 503"),
        ({"cut": "/t.zarr/zarr.json"}, r"/t\.zarr/zarr\.json cannot be read: .*payload"),
        ({"lengths": False}, r"c/0/0/0 cannot be read: the server does not say how large it is"),
    ],
)
def test_a_failing_server_is_named_and_the_store_not_called_absent(server, fault, message):
    for name, value in fault.items():
        setattr(server, name, value)
    with pytest.raises(SpgError, match=message) as error:
        FeatureStore(server.url)
    assert not isinstance(error.value, DamagedError | NotThereError)
    assert "extract" not in str(error.value)


@pytest.mark.parametrize("name", ["tokens_1/c/0/0/0", "mask/c/0/0/0", "label/c/0"])
def test_an_answer_that_is_cut_off_or_refused_later_names_the_file(server, name):
    remote = FeatureStore(server.url)
    server.cut = f"/t.zarr/{name}"
    with pytest.raises(SpgError, match=rf"{server.url}/{name} cannot be read: .*payload"):
        _ = remote.tokens("1", ROWS), remote.masks(ROWS), remote.table
    server.status = {server.cut: 502}
    with pytest.raises(SpgError, match=rf"{server.url}/{name} cannot be read: 502"):
        _ = remote.tokens("1", ROWS), remote.masks(ROWS), remote.table


def test_a_server_that_does_not_answer_in_time_is_one_message(server, monkeypatch):
    remote = FeatureStore(server.url)

    async def late(*_: object, **__: object) -> bytes:
        raise TimeoutError

    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem._cat_file", late)
    with pytest.raises(SpgError, match=rf"{server.url}/label/c/0 cannot be read: TimeoutError"):
        remote.array("label")
    with pytest.raises(SpgError, match=r"zarr\.json cannot be read: .*Timeout"):
        FeatureStore(server.url)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("http://127.0.0.1:9/t.zarr", r"http://127\.0\.0\.1:9/t\.zarr/zarr\.json cannot be read"),
        ("nonsense://x/t.zarr", r"nonsense://x/t\.zarr cannot be read: Protocol not known"),
    ],
)
def test_an_address_that_nobody_answers_is_one_message(place, message):
    with pytest.raises(SpgError, match=message):
        FeatureStore(place)


def test_what_is_not_on_a_server_is_no_store(server):
    with pytest.raises(SpgError, match=r"x\.zarr is not a feature store"):
        FeatureStore(server.url.replace("t.zarr", "x.zarr"))

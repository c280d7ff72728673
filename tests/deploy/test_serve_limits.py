"""What a server refuses, each with a status and with what was found and expected."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import psutil
import pytest
from PIL import Image

from deploy.serving import INFER, TINY, Server, picture, pixels, refused, served, until
from spg_pipe.deploy.serving.bounds import Bounds
from spg_pipe.detector.model import Detector


def bomb(kind: str, side: int = 30_000) -> bytes:
    """A file of few bytes whose header claims `side`² pixels."""
    if kind == "PNG":
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"\0" * 10_000_000, 9)),
            (b"IEND", b""),
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    data = io.BytesIO()
    if kind == "WEBP":  # at most 16383 a side
        side = 16_383
        Image.new("RGB", (16, 16)).save(data, "WEBP", lossless=True)
        content = bytearray(data.getvalue())
        start = content.index(b"VP8L") + 9
        bits = int.from_bytes(content[start : start + 4], "little") >> 28 << 28
        content[start : start + 4] = (bits | side - 1 | (side - 1) << 14).to_bytes(4, "little")
        return bytes(content)
    Image.new("1", (side, 8)).save(data, "TIFF", compression="group4")
    return data.getvalue().replace(
        struct.pack("<HHII", 257, 4, 1, 8), struct.pack("<HHII", 257, 4, 1, side)
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding(
    server: Server, kind: str
) -> None:
    content, before = bomb(kind), psutil.Process().memory_info().rss
    assert len(content) < 100_000
    refused(server, 413, "pixels", "10,000", "--max-megapixels", content=content)
    assert psutil.Process().memory_info().rss < before + 50e6


def test_a_body_that_states_too_many_bytes_is_refused_before_it_is_read(server: Server) -> None:
    before = server.count("spg_refused_bytes_total")
    refused(server, 413, "300,000 bytes", "200,000", "--max-mb", content=b"x" * 300_000)
    assert server.count("spg_refused_bytes_total") == before + 300_000


def test_a_body_without_a_stated_length_is_cut_off_at_the_same_bound(
    tiny_detector: Detector,
) -> None:
    with served(tiny_detector, Bounds(body_bytes=200_000)) as server:
        refused(server, 413, "or more", "200,000", content=iter([b"x" * 50_000] * 5))


def test_a_body_that_does_not_arrive_in_time_is_a_408(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(head + b"half")
        began = time.monotonic()
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert b"4 bytes came in 1 s" in answer
    assert time.monotonic() - began < 20
    assert server.service.waiting.in_hand == 0


HEAD = b"GET /v2 HTTP/1.1\r\nHost: h\r\n"
SLOW = {
    "silent": (b"", b""),
    "half a head": (b"", HEAD),
    "half a second head": (HEAD + b"\r\n", b"G"),
    "the body of what is answered": (HEAD + b"Content-Length: 99\r\n\r\n", b"x"),
}


@pytest.mark.parametrize(("whole", "rest"), SLOW.values(), ids=SLOW)
def test_a_connection_whose_next_head_does_not_arrive_in_time_is_closed(
    server: Server, whole: bytes, rest: bytes
) -> None:
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(whole)
        answer = b""
        while whole and not answer.endswith(b"}"):
            answer += connection.recv(65536)
        connection.sendall(rest)
        assert b"".join(iter(lambda: connection.recv(65536), b"")) == b""


def test_silent_connections_shut_nobody_out_for_long(server: Server) -> None:
    silent = [socket.create_connection(server.address, timeout=30) for _ in range(140)]
    for connection in silent:
        assert connection.recv(1) == b""
        connection.close()
    assert server.client.get("/v2/health/live").status_code == 200


def test_an_answer_that_takes_longer_than_a_head_may_is_given(server: Server) -> None:
    server.gate.open.clear()
    with ThreadPoolExecutor(1) as senders:
        sent = senders.submit(server.client.post, "/predict", content=picture())
        try:
            until(lambda: server.service.waiting.in_hand == 1)
            time.sleep(1.5)
        finally:
            server.gate.open.set()
        assert sent.result().status_code == 200


def test_a_body_that_breaks_off_leaves_nothing_behind(server: Server) -> None:
    for head in (
        b"Content-Length: 1000\r\n\r\nhalf",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ):
        server.raw(b"POST /predict HTTP/1.1\r\nHost: h\r\n" + head)
    until(lambda: server.service.waiting.in_hand == 0)


def test_an_image_that_is_not_judged_in_time_is_a_503_and_leaves_its_place(server: Server) -> None:
    server.gate.waits.clear()
    server.gate.open.clear()
    with ThreadPoolExecutor(4) as senders:
        sent = [senders.submit(server.client.post, "/predict", content=picture()) for _ in range(4)]
        answers = [each.result() for each in sent]
    assert [answer.status_code for answer in answers] == [503] * 4
    assert "within 5 s (--seconds)" in answers[0].json()["error"]
    assert answers[0].headers["retry-after"] == "1"
    server.gate.open.set()
    until(lambda: not server.service.waiting.in_hand)
    assert server.client.post("/predict", content=picture()).status_code == 200


def test_an_image_beyond_the_queue_is_a_429_and_those_in_it_are_judged(
    tiny_detector: Detector,
) -> None:
    with served(tiny_detector, Bounds(images=4)) as server, ThreadPoolExecutor(4) as senders:
        server.gate.open.clear()
        sent = [senders.submit(server.client.post, "/predict", content=picture()) for _ in range(4)]
        until(lambda: server.service.waiting.in_hand == 4)
        answer = server.client.post("/predict", content=picture())
        assert server.client.get("/v2/health/ready").status_code == 200
        server.gate.open.set()
        assert [each.result().status_code for each in sent] == [200] * 4
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert "4 images are in hand" in answer.json()["error"]


def test_what_is_no_image_is_a_4xx_that_says_so(server: Server) -> None:
    whole = picture()
    refused(server, 400, "empty", content=b"")
    refused(server, 422, "not an image of a known format", content=b"GIF89")
    refused(server, 422, "not an image of a known format", content=os.urandom(5000))
    refused(server, 422, "cannot be read", content=whole[: len(whole) // 2])
    refused(server, 415, "gzip", content=whole, headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    "name", ["", "/", "..", "a/../../b", ".png", "a\0b", "\ud7ff" * 500, "<b>"]
)
def test_any_name_is_only_a_name(server: Server, name: str) -> None:
    answer = server.client.post("/predict", params={"name": name, "group": name}, content=picture())
    assert answer.status_code == 200
    assert answer.json()["path"] == (name if name not in ("", "/") else "unnamed")
    refused(server, 422, params={"name": name}, content=b"no image")


def test_a_large_map_is_sent_as_binary_data_alone(server: Server, monkeypatch: Any) -> None:
    monkeypatch.setattr("spg_pipe.deploy.serving.tensors.JSON_VALUES", 1)
    refused(server, 400, "2 values as JSON", "binary", path=INFER, json={"inputs": [TINY]})
    asked = {"inputs": [TINY], "parameters": {"binary_data_output": True}}
    assert server.client.post(INFER, json=asked).status_code == 200


def test_a_form_without_one_file_is_a_400(server: Server) -> None:
    form = {"Content-Type": "multipart/form-data"}
    refused(server, 400, "form", content=picture(), headers=form)
    form["Content-Type"] += "; boundary=b"
    refused(server, 400, "form", content=picture(), headers=form)
    refused(server, 400, "no file", files={"file": (None, "text")})
    files = [("file", ("a", picture())), ("file", ("b", picture()))]
    refused(server, 400, "one file", files=files)
    refused(server, 400, "'a.png' is empty", files={"file": ("a.png", b"")})


def test_an_option_that_does_not_exist_is_a_422_that_names_it(server: Server) -> None:
    known = "map, overlay, photo, explain, name, group"
    refused(server, 422, "mapp=1", known, params={"mapp": 1}, content=picture())
    wrong = {"overlay": "perhaps"}
    refused(server, 422, "overlay=perhaps", "true or false", params=wrong, content=picture())


def test_unknown_models_versions_and_paths_are_a_404_and_wrong_methods_a_405(
    server: Server,
) -> None:
    for path in ("/v2/models/other", "/v2/models/tiny/versions/2", "/v2/models/other/ready", "/x"):
        answer = server.client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]
    refused(server, 404, "'other'", "'tiny'", path="/v2/models/other/infer", json={})
    answer = server.client.get("/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "Method Not Allowed: expected is POST." in answer.json()["error"]


def test_what_is_no_http_is_a_400(server: Server) -> None:
    assert b" 400 " in server.raw(b"\x16\x03\x01\x02\x00\x01\n\n").partition(b"\r\n")[0]
    assert server.client.get("/v2").status_code == 200


def test_an_image_of_16_bits_without_white_is_refused_as_on_standard_input(server: Server) -> None:
    data = io.BytesIO()
    Image.fromarray((pixels((8, 8))[:, :, 0] * 16).astype("uint16")).save(data, "PNG")
    refused(server, 422, "16 bits", "white", content=data.getvalue())


def test_when_it_is_stopped_a_body_that_still_arrives_is_judged(tiny_detector: Detector) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: {len(picture())}\r\n\r\n".encode()
    with served(tiny_detector) as server, ThreadPoolExecutor(1) as senders:
        server.gate.open.clear()
        sent = senders.submit(server.client.post, "/predict", content=picture())
        until(lambda: server.service.waiting.in_hand == 1)
        with socket.create_connection(server.address, timeout=30) as late:
            late.sendall(head + picture()[:100])
            until(lambda: server.service.waiting.in_hand == 2)
            server.service.waiting.close()
            server.gate.open.set()
            assert sent.result().status_code == 200
            late.sendall(picture()[100:])
            assert late.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_device_that_hangs_does_not_keep_the_server_from_ending(
    tiny_detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    with served(tiny_detector, Bounds(seconds=1)) as server:
        server.gate.open.clear()
        assert server.client.post("/predict", content=picture()).status_code == 503
        server.service.waiting.close()
        until(lambda: "given up" in caplog.text)


def test_after_the_last_day_of_the_calibration_nothing_is_decided(tiny_detector: Detector) -> None:
    with served(tiny_detector, valid_until=date(2020, 1, 31)) as server:
        for answer in (
            server.client.post("/predict", content=picture()),
            server.client.post(INFER, json={"inputs": [TINY]}),
            server.client.get("/v2/health/ready"),
        ):
            assert answer.status_code == 503
            assert "held until 2020-01-31" in answer.json()["error"]
        assert server.client.get("/v2/health/live").status_code == 200

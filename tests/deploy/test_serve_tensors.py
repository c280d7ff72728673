"""Wrong tensors and wrong JSON are a 4xx that says what is expected."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest

from deploy.serving import INFER, TINY, Server, pixels, refused
from spg_pipe.deploy.serving import tensors
from spg_pipe.deploy.serving.bounds import Bounds, RefusedError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "photo"}, ["'photo'", "'image'"]),
        ({"datatype": "FP32"}, ["'FP32'", "UINT8"]),
        ({"shape": [1, 3, 3]}, ["6 values", "9"]),
        ({"shape": [2, 1, 1, 3]}, ["[2, 1, 1, 3]", "one image"]),
        ({"shape": [1, 1, 6]}, ["[1, 1, 6]"]),
        ({"shape": [0, 0, 3]}, ["[0, 0, 3]"]),
        ({"shape": [-1, 1, 3]}, ["shape"]),
        ({"shape": [2**40, 1, 3]}, ["shape"]),
        ({"shape": []}, ["shape"]),
        ({"data": [0, 1, 2, 3, 4, 256]}, ["256", "0 to 255"]),
        ({"data": [0, 1, 2, 3, 4, -1]}, ["-1", "0 to 255"]),
        ({"data": [0, 1, 2, 3, 4, 0.5]}, ["integers"]),
        ({"data": [0, 1, 2, 3, 4, 10**30]}, ["integers"]),
        ({"data": [[1], [1, 2]]}, ["3 values", "6"]),
        ({"data": [[1], 2]}, ["integers"]),
        ({"data": ["a"] * 6}, ["integers"]),
        ({"data": {"a": 1}}, ["integers"]),
        ({"data": []}, ["integers"]),
        ({"data": None}, ["no data"]),
        ({"datatype": "BYTES", "data": ["x"], "shape": [1]}, ["binary"]),
    ],
)
def test_a_wrong_tensor_is_a_400_that_says_what_is_expected(
    server: Server, changes: dict[str, Any], words: list[str]
) -> None:
    refused(server, 400, *words, path=INFER, json={"inputs": [TINY | changes]})


def test_a_shape_of_too_many_pixels_is_refused_whatever_the_data(server: Server) -> None:
    given = TINY | {"shape": [1, 30_000, 30_000, 3]}
    refused(server, 413, "900,000,000", path=INFER, json={"inputs": [given]})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("{", "Found: invalid JSON"),
        ("[]", "object"),
        ("null", "object"),
        ('{"inputs": []}', "inputs"),
        ('{"inputs": [1]}', "inputs"),
        (json.dumps({"inputs": [TINY], "outputs": [{"name": "score"}] * 2}), "twice"),
        (json.dumps({"inputs": [TINY], "parameters": {"binary_data_output": "false"}}), "'false'"),
        (json.dumps({"inputs": [TINY], "parameters": {str(i): 1 for i in range(17)}}), "17 param"),
        ('{"inputs": %s}' % ("[" * 5000 + "]" * 5000), "JSON"),
        (json.dumps({"inputs": [TINY | {"data": [float("nan")] * 6}]}), "integers"),
        ("\xff", "JSON"),
    ],
)
def test_wrong_json_is_a_400(server: Server, text: str, word: str) -> None:
    refused(server, 400, word, path=INFER, content=text.encode("latin-1"))


def test_two_inputs_or_an_unknown_output_are_a_400(server: Server) -> None:
    refused(server, 400, "inputs", path=INFER, json={"inputs": [TINY, TINY]})
    asked = {"inputs": [TINY], "outputs": [{"name": "heat"}]}
    refused(server, 400, "'heat'", "map, score, decision", path=INFER, json=asked)


@pytest.mark.parametrize("header", ["0", "-5", "x", "99999999999", "9" * 5000, "²", "1e3"])
def test_a_wrong_length_of_the_json_is_a_400(server: Server, header: str) -> None:
    headers = {b"Inference-Header-Content-Length": header.encode("utf-8")}
    refused(server, 400, "Inference-Header", path=INFER, content=b"{}", headers=headers)


def test_binary_data_must_have_the_size_that_is_stated(server: Server) -> None:
    image = pixels((4, 5))
    for stated, sent, word in ((60, 59, "59 bytes"), (59, 59, "59 values"), ("60", 60, "60")):
        given = TINY | {"shape": [4, 5, 3], "parameters": {"binary_data_size": stated}}
        del given["data"]
        text = json.dumps({"inputs": [given]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        content = text + image.tobytes()[:sent]
        refused(server, 400, word, path=INFER, content=content, headers=headers)
    both = TINY | {"parameters": {"binary_data_size": 6}}
    refused(server, 400, "binary_data_size", path=INFER, json={"inputs": [both]})


def test_long_json_is_refused_and_an_image_belongs_behind_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spg_pipe.deploy.serving.tensors.JSON_BYTES", 150)
    long = json.dumps({"inputs": [TINY], "id": "x" * 100}).encode()
    refused(server, 413, f"{len(long)} bytes", "150", "binary", path=INFER, content=long)
    headers = {"Inference-Header-Content-Length": str(len(long))}
    refused(server, 413, "150", path=INFER, content=long + b"x", headers=headers)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"inputs": [TINY | {"data": [[]] * 333_000}]}, separators=(",", ":")),
        json.dumps({"inputs": [TINY | {"data": [[[1]]] * 160_000}]}, separators=(",", ":")),
        json.dumps({"inputs": [TINY | {"data": [1] * 498_000 + [""]}]}, separators=(",", ":")),
        json.dumps({"inputs": [{}] * 330_000}, separators=(",", ":")),
        json.dumps({"parameters": {f"{i:x}": [] for i in range(90_000)}}, separators=(",", ":")),
        json.dumps({"inputs": [TINY], "x": [[]] * 333_000}, separators=(",", ":")),
    ],
    ids=["empty lists", "nested", "integers", "inputs", "parameters", "unknown"],
)
def test_no_json_holds_other_requests_up_for_long(text: str) -> None:
    assert 900_000 < len(text) <= tensors.JSON_BYTES
    seconds = []
    for _ in range(3):  # the least: a loaded machine makes single ones longer
        began = time.thread_time()
        with suppress(RefusedError):  # what is unknown is not refused
            tensors.read_request(text.encode(), None, ["map"], Bounds())
        seconds.append(time.thread_time() - began)
    assert min(seconds) < 3


@pytest.mark.parametrize("element", [b"", b"\5\0\0\0abc", b"\xff\xff\xff\xffabc"])
def test_an_element_of_bytes_must_have_its_own_length(server: Server, element: bytes) -> None:
    given = {"name": "image", "shape": [1], "datatype": "BYTES"}
    given["parameters"] = {"binary_data_size": len(element)}
    text = json.dumps({"inputs": [given]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    refused(server, 400, "BYTES", path=INFER, content=text + element, headers=headers)

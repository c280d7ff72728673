"""`spg-pipe serve` as a process: it decides as `predict`, ends gracefully, keeps its word."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tiny import TinyBackbone, write_folder

from deploy.serving import Server, picture, served, until
from spg_pipe.cli.main import app
from spg_pipe.deploy.serving.bounds import Bounds
from spg_pipe.detector.model import Detector
from spg_pipe.pipeline.console import exit_code

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from unittest import mock
from tiny import TinyBackbone
from spg_pipe.cli.main import main
with mock.patch("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone()):
    main()
"""


@pytest.fixture
def called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """A command in this process: exit code, standard output, errors."""
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())

    def called(*words: object) -> tuple[int, str, str]:
        code = exit_code(lambda: app([*map(str, words), "--device", "cpu"]))
        return code, *capsys.readouterr()

    return called


@pytest.mark.slow
def test_the_command_decides_as_predict_and_finishes_what_is_in_hand(
    tmp_path: Path, tiny_detector: Detector, called: Any
) -> None:
    detector, parts = tmp_path / "detector", write_folder(tmp_path / "parts", ("bolt",), good=20)
    tiny_detector.save(detector)
    assert called("calibrate", detector, parts / "bolt" / "good")[0] == 0
    out = tmp_path / "out"
    options = ("--overlays", "none", "--json", "--out", out)
    code, lines, _ = called("predict", detector, parts / "bolt" / "dent", *options)
    assert code == 0
    words = [sys.executable, "-c", PROGRAM, "serve", str(detector), "--port", "0"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        said = ""
        while not (found := re.search(r"detector is served at (http://127\.0\.0\.1:\d+/)", said)):
            said += process.stderr.readline()
            assert process.poll() is None, said
        assert "Decided by" in said
        with httpx.Client(base_url=found[1], timeout=60) as client:
            for line in lines.splitlines():
                name = json.loads(line)["path"]
                content = (parts / "bolt" / "dent" / name).read_bytes()
                answer = client.post("/predict", params={"name": name}, content=content)
                assert answer.text == line
                assert answer.json()["p_value"] is not None
            host = (client.base_url.host, int(client.base_url.port or 0))
            with socket.create_connection(host, timeout=60) as late:
                body = picture()
                late.sendall(
                    b"POST /predict HTTP/1.1\r\nHost: h\r\n"
                    + f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body[:1000]
                )
                until(lambda: "spg_in_hand 1.0" in client.get("/metrics").text)
                process.send_signal(signal.SIGTERM)
                until(lambda: client.get("/v2/health/ready").status_code == 503)
                refused = client.post("/predict", content=body)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
                assert client.get("/v2/health/live").status_code == 200
                late.sendall(body[1000:])
                assert late.recv(65536).startswith(b"HTTP/1.1 200")
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_an_address_that_is_taken_is_an_error_that_names_it(
    tmp_path: Path, tiny_detector: Detector, called: Any
) -> None:
    tiny_detector.save(tmp_path / "detector")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, said = called("serve", tmp_path / "detector", "--port", port)
    assert code == 1
    assert f"Port {port} of 127.0.0.1 cannot be used" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--name", "a/b"), ["'a/b'", "--name"]),
        (("--max-megapixels", "101"), ["101", "SPG_MAX_MEGAPIXELS"]),
        (("--host", "256.1.1.1"), ["256.1.1.1", "--host"]),
        (("--host", "a..b"), ["'a..b' is not known", "--host"]),
    ],
)
def test_wrong_options_are_errors_that_say_what_is_expected(
    tmp_path: Path, tiny_detector: Detector, called: Any, options: Any, words: list[str]
) -> None:
    tiny_detector.save(tmp_path / "detector")
    code, _, said = called("serve", tmp_path / "detector", "--port", 0, *options)
    assert code in (1, 2)
    for word in words:
        assert word in said


def test_without_the_extra_the_message_names_it(
    tmp_path: Path, called: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("spg_pipe.deploy.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, _, said = called("serve", tmp_path)
    assert code == 1
    assert "pip install 'spg-pipe[serve]'" in said


@pytest.fixture(scope="module")
def server(tiny_detector: Detector) -> Iterator[Server]:
    with served(tiny_detector, Bounds(body_seconds=2, seconds=10)) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_route_answers_as_it_documents_and_never_with_an_error_of_its_own(
    server: Server, mode: GenerationMode
) -> None:
    seen = set()
    schema = schemathesis.openapi.from_url(f"{server.url}openapi.json")
    for operation in schema.get_all_operations():

        @given(operation.ok().as_strategy(generation_mode=mode))
        @settings(
            max_examples=8,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: schemathesis.Case) -> None:
            response = case.call()
            seen.add((case.path, response.status_code))
            assert response.status_code < 500 or response.status_code == 503
            case.validate_response(response, excluded_checks=[positive_data_acceptance])

        try:
            check()
        except Unsatisfiable:  # a route that takes nothing cannot be given something wrong
            assert mode is GenerationMode.NEGATIVE
    assert ("/predict", 422) in seen

"""`spg-pipe serve` as a process: it decides as `predict`, ends gracefully, keeps its word."""

from __future__ import annotations

import base64
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
from starlette.testclient import TestClient
from tiny import TinyBackbone, write_folder

from deploy.serving import Server, picture, served, until
from spg_pipe.cli.main import app
from spg_pipe.decision.calibration import Calibration
from spg_pipe.deploy.serving.app import make_app
from spg_pipe.deploy.serving.bounds import Bounds
from spg_pipe.deploy.serving.service import Service
from spg_pipe.detector.model import Detector
from spg_pipe.pipeline.console import exit_code

PLAIN = base64.b64decode(  # PNG, one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
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
    words += ["--body-seconds", "60"]
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


@pytest.fixture
def asked(
    called: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """What `serve` says while a function asks what it would serve, without a socket."""

    def asked(ask: Callable[[TestClient, Service], None], *words: object) -> str:
        def run(service: Service, _: socket.socket, on_ready: Callable[[], None]) -> None:
            service.waiting.start()
            on_ready()
            ask(TestClient(make_app(service)), service)
            service.waiting.end(60)

        monkeypatch.setattr("spg_pipe.deploy.serving.run.run", run)
        code, _, said = called("serve", *words, "--port", 0)
        assert code == 0, said
        return said

    return asked


def test_each_group_is_decided_by_its_own_calibration_and_an_unknown_one_not_at_all(
    tmp_path: Path, tiny_detector: Detector, called: Any, asked: Any
) -> None:
    detector, parts = tmp_path / "detector", write_folder(tmp_path / "parts", good=20)
    tiny_detector.save(detector)
    assert called("calibrate", detector, parts, "--by-folder", "--valid-days", 30)[0] == 0
    made = Calibration.load(tmp_path / "detector-calibration.json")

    def ask(client: TestClient, service: Service) -> None:
        assert service.valid_until == made.valid_until
        for group, limits in made.groups.items():
            line = client.post("/predict", params={"group": group}, content=picture()).json()
            assert limits.image
            assert (line["threshold"], line["group"]) == (limits.image.value, group)
        answer = client.post("/predict", params={"group": "screw"}, content=picture())
        assert answer.status_code == 422
        assert "no threshold for images of the folder screw" in answer.json()["error"]
        tensor = {"name": "image", "shape": [1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}
        request = {"inputs": [tensor], "parameters": {"group": "screw"}}
        answer = client.post("/v2/models/detector/infer", json=request)
        assert (answer.status_code, "screw" in answer.json()["error"]) == (422, True)
        counted = service.counts.registry.get_sample_value
        until(lambda: counted("spg_images_total", {"decision": "unreadable"}) == 2)  # it lags

    assert set(made.groups) == {"bolt", "nut"}
    asked(ask, detector)


def test_drift_is_counted_and_said(
    tmp_path: Path, tiny_detector: Detector, called: Any, asked: Any
) -> None:
    detector, parts = tmp_path / "detector", write_folder(tmp_path / "parts", ("bolt",), good=20)
    tiny_detector.save(detector)
    limits = ("--method", "manual", "--threshold", "1e9")
    assert called("calibrate", detector, parts / "bolt" / "good", *limits)[0] == 0

    def ask(client: TestClient, service: Service) -> None:
        for _ in range(60):  # one image again and again: all of them are at one end
            assert client.post("/predict", content=PLAIN).status_code == 200
        warnings.append(service.counts.registry.get_sample_value("spg_drift_warnings_total") or 0)

    warnings = list[float]()
    assert "Warning: drift." in asked(ask, detector, "--drift", 20)
    assert "Warning" not in asked(ask, detector, "--drift", 0)
    assert warnings[0] >= 1
    assert warnings[1] == 0


def test_a_bank_alone_explains_nothing_and_its_page_does_not_ask_for_it(
    tmp_path: Path, tiny_detector: Detector, asked: Any
) -> None:
    detector, parts = tmp_path / "detector", write_folder(tmp_path / "parts", ("bolt",))
    tiny_detector.save(detector)

    def ask(client: TestClient, _: Service) -> None:
        assert 'data-explain="false"' in client.get("/").text
        answer = client.post("/predict", params={"explain": True}, content=picture())
        assert (answer.status_code, "explained" in answer.json()["error"]) == (400, True)
        assert client.post("/predict", content=picture()).status_code == 200

    asked(ask, detector, "--normals", parts / "bolt" / "good", "--bank", "alone")


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
    server: Server, mode: GenerationMode, caplog: pytest.LogCaptureFixture
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
    assert [record for record in caplog.records if record.exc_info] == []

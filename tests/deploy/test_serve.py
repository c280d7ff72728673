"""A served detector says what `predict` says, by every way in."""

from __future__ import annotations

import base64
import io
import json
import re
import runpy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tiny import TinyBackbone

from deploy.serving import Server, picture, pixels, served, until
from spg_pipe.bank.normal_patches import BATCH
from spg_pipe.detector.model import Detector
from spg_pipe.predict.finish import Finish, finish
from spg_pipe.predict.items import Reading, find_items, sha256_of
from spg_pipe.predict.judge import JudgedImage, Unreadable, judge_items
from spg_pipe.predict.pictures import map_png, overlay_picture
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.result import parse_line

MODEL = "/v2/models/tiny"


@pytest.fixture(scope="module")
def server(tiny_detector: Detector) -> Iterator[Server]:
    with served(tiny_detector) as running:
        yield running


@pytest.fixture(scope="module")
def predicted(tiny_detector: Detector, tmp_path_factory: pytest.TempPathFactory, server: Server):  # type: ignore[no-untyped-def]
    """Files in several formats, with predict's line, explanation and map of each."""
    folder = tmp_path_factory.mktemp("images")
    kinds = {"a.png": "PNG", "b.jpg": "JPEG", "c.webp": "WEBP", "d.tif": "TIFF", "e.bmp": "BMP"}
    for number, (name, kind) in enumerate(kinds.items()):
        (folder / name).write_bytes(picture((30 + number, 41), number, kind))
    how = Finish(
        Predictor(tiny_detector, TinyBackbone()),
        folder,
        limits=server.service.waiting.how.limits,
        overlays=False,
        explained=False,
    )

    def then(judged: JudgedImage | Unreadable) -> tuple[str, str, str, np.ndarray]:
        assert isinstance(judged, JudgedImage)
        entry = finish(judged, how)
        return judged.item.name, entry.text, entry.why, judged.anomaly_map

    items = find_items([str(folder)], folder / "out")
    judged = judge_items(how.predictor, items, Reading(), then, explained=True)
    return {name: (folder / name, text, why, values) for name, text, why, values in judged}


def test_the_body_of_a_file_is_answered_with_predicts_line(server: Server, predicted: Any) -> None:
    assert len(predicted) == 5
    for name, (path, text, _, _) in predicted.items():
        answer = server.client.post("/predict", params={"name": name}, content=path.read_bytes())
        assert answer.status_code == 200
        assert answer.text == text
    decisions = {json.loads(text)["decision"] for _, text, _, _ in predicted.values()}
    assert decisions <= {"normal", "anomalous"}


def test_the_file_of_a_form_is_answered_with_the_same_line(server: Server, predicted: Any) -> None:
    for name, (path, text, _, _) in predicted.items():
        answer = server.client.post("/predict", files={"file": (name, path.read_bytes())})
        assert answer.text == text


def test_options_add_pictures_and_the_explanation(server: Server, predicted: Any) -> None:
    path, text, why, values = predicted["a.png"]
    options = {"name": "a.png", "map": 1, "overlay": 1, "photo": 1, "explain": 1}
    answer = server.client.post("/predict", params=options, content=path.read_bytes()).json()
    assert base64.b64decode(answer.pop("map_png")) == map_png(values)
    drawn = overlay_picture(
        pixels((30, 41)), values, server.service.waiting.how.predictor.shown, 0.5
    )
    assert base64.b64decode(answer.pop("overlay_jpeg")) == drawn
    with Image.open(io.BytesIO(base64.b64decode(answer.pop("photo_jpeg")))) as photo:
        assert photo.size == (41, 30)
    assert answer.pop("explanation") == json.loads(why)
    assert answer == json.loads(text)


def test_a_triton_client_finds_the_server_and_the_model(server: Server) -> None:
    with client_of(server) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.is_model_ready("tiny", "1")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        model = client.get_model_metadata("tiny", "1")
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [1, -1, -1, 3]}]
    assert [output["name"] for output in model["outputs"]] == ["map", "score", "decision"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_a_triton_client_gets_predicts_map_score_and_decision(
    server: Server, predicted: Any, binary_in: bool, binary_out: bool
) -> None:
    path, text, _, values = predicted["a.png"]
    with Image.open(path) as photograph:
        image = np.asarray(photograph)[None]
    tensor = triton.InferInput("image", list(image.shape), "UINT8")
    tensor.set_data_from_numpy(image, binary_data=binary_in)
    names = ("map", "score", "decision")
    asked = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    with client_of(server) as client:
        answer = client.infer("tiny", [tensor], outputs=asked, request_id="7")
    line = json.loads(text)
    assert answer.get_response()["id"] == "7"
    np.testing.assert_array_equal(answer.as_numpy("map"), values)
    assert answer.as_numpy("map").dtype == np.float32
    assert answer.as_numpy("score").tolist() == [line["score"]]
    assert answer.as_numpy("decision").tolist() == [line["decision"] == "anomalous"]


def test_a_triton_client_may_send_the_file_itself(server: Server, predicted: Any) -> None:
    for path, text, _, _ in predicted.values():
        tensor = triton.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([path.read_bytes()], dtype=np.object_))
        with client_of(server) as client:
            answer = client.infer("tiny", [tensor])
        assert answer.as_numpy("score").tolist() == [json.loads(text)["score"]]


def test_the_example_of_the_page_on_serving_runs(
    server: Server, predicted: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    (code,) = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)
    path, text, _, _ = predicted["a.png"]
    address = "{}:{}".format(*server.address)
    code = code.replace("part.png", str(path)).replace("part-7", "tiny")
    (tmp_path / "example.py").write_text(code.replace("127.0.0.1:8000", address))
    runpy.run_path(str(tmp_path / "example.py"))
    assert str(json.loads(text)["score"])[:6] in capsys.readouterr().out


def client_of(server: Server) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(f"{server.address[0]}:{server.address[1]}")


def test_json_may_be_nested_without_a_batch_and_ask_for_one_output(server: Server) -> None:
    image = pixels((8, 9))
    given = {"name": "image", "shape": [8, 9, 3], "datatype": "UINT8", "data": image.tolist()}
    request = {"inputs": [given], "outputs": [{"name": "score"}]}
    answer = server.client.post(f"{MODEL}/versions/1/infer", json=request)
    flat = request | {
        "inputs": [given | {"data": image.reshape(-1).tolist(), "shape": [1, 8, 9, 3]}]
    }
    assert answer.status_code == 200
    assert answer.json() == server.client.post(f"{MODEL}/infer", json=flat).json()
    (output,) = answer.json()["outputs"]
    assert output == {"name": "score", "datatype": "FP64", "shape": [1], "data": output["data"]}


def test_without_a_threshold_there_is_no_decision_to_ask_for(tiny_detector: Detector) -> None:
    with served(tiny_detector, threshold=None) as server:
        names = [output["name"] for output in server.client.get(MODEL).json()["outputs"]]
        assert names == ["map", "score"]
        given = {"name": "image", "shape": [1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}
        request = {"inputs": [given], "outputs": [{"name": "decision"}]}
        answer = server.client.post(f"{MODEL}/infer", json=request)
        assert (answer.status_code, "calibrate" in answer.json()["error"]) == (400, True)
        assert server.client.post("/predict", content=picture()).json()["decision"] is None


def test_metrics_count_requests_and_images_by_their_decision(server: Server) -> None:
    def count(decision: str) -> float:
        return server.count("spg_images_total", decision=decision)

    def requests(endpoint: str, status: str) -> float:
        return server.count("spg_requests_total", endpoint=endpoint, status=status)

    judged, unreadable = count("normal") + count("anomalous"), count("unreadable")
    server.client.post("/predict", content=picture())
    content = b"no image"
    line = parse_line(server.client.post("/predict", content=content, params={"group": "a"}).text)
    assert (line.path, line.group, line.sha256) == ("unnamed", "a", sha256_of(content))
    server.client.get("/nowhere")  # each is counted just after its answer
    until(lambda: count("normal") + count("anomalous") == judged + 1)
    until(lambda: count("unreadable") == unreadable + 1)
    until(lambda: requests("/predict", "422") >= 1 and requests("other", "404") >= 1)
    page = server.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert re.search(r'^spg_request_seconds_count\{endpoint="/predict"\} \d', page.text, re.M)
    assert "spg_in_hand 0.0" in page.text


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_inline_script(server: Server) -> None:
    page = server.client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|<script(?! src=)|\son\w+=|style=", page.text)
    for file in re.findall(r'(?:src|href)="([\w.]+)"', page.text):
        answer = server.client.get(file)
        assert answer.status_code == 200, file
        assert not re.search(r"https?://(?!www\.w3\.org)", answer.text), file
    assert 'data-explain="true"' in page.text
    ids = set(re.findall(r'id="([\w-]+)"', page.text))
    wanted = set(re.findall(r'at\("([\w-]+)"\)', server.client.get("page.js").text))
    assert wanted <= ids


def test_images_that_wait_are_judged_together_on_a_gpu(
    tiny_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spg_pipe.predict.judge._on_cpu", lambda _: False)
    with served(tiny_detector) as server, ThreadPoolExecutor(24) as senders:
        alone = server.client.post("/predict", content=picture(seed=3)).json()
        server.gate.open.clear()
        send = partial(server.client.post, "/predict")
        sent = [senders.submit(send, content=picture(seed=seed)) for seed in range(24)]
        until(lambda: server.service.waiting.in_hand == 24)
        server.gate.open.set()
        answers = [each.result().json() for each in sent]
    assert max(server.gate.batches) == BATCH
    assert len(server.gate.batches) <= 2 + 8 + 24 // BATCH
    assert answers[3]["sha256"] == alone["sha256"]
    assert answers[3]["score"] == pytest.approx(alone["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RuntimeError("the device is gone"), 500, "could not be judged"),
        (MemoryError(), 503, "Memory is short"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 503, "Memory is short"),
    ],
)
def test_what_breaks_off_is_answered_and_logged_and_the_next_image_is_judged(
    server: Server, error: Exception, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.gate.breaks = error
    broken = server.client.post("/predict", content=picture())
    assert broken.status_code == status
    assert words in broken.json()["error"]
    assert ("retry-after" in broken.headers) == (status == 503)
    (record,) = caplog.records
    assert (record.exc_info or (None, None))[1] is error
    assert server.client.post("/predict", content=picture()).status_code == 200


def test_a_fault_of_the_server_is_a_500_that_is_logged_with_its_trace(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spg_pipe.deploy.serving.judging.file_in", None)
    answer = server.client.post("/predict", content=picture())
    assert answer.status_code == 500
    assert "fault of its own" in answer.json()["error"]
    # It is logged after the answer is sent.
    until(lambda: any(r.exc_info and r.exc_info[0] is TypeError for r in caplog.records))
    monkeypatch.undo()
    assert server.client.post("/predict", content=picture()).status_code == 200

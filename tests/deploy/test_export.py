"""`export`: a folder that judges images without this project, as `predict` does."""

from __future__ import annotations

import ast
import hashlib
import json
import struct
import subprocess
import sys
import zlib
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tiny import TinyBackbone, photograph

from spg_pipe.cli.main import app
from spg_pipe.deploy import check, formats, runner
from spg_pipe.deploy.card import card_of, in_words
from spg_pipe.deploy.check import made_up, predicted, require_agreement
from spg_pipe.deploy.export import export
from spg_pipe.deploy.runner import ENDINGS
from spg_pipe.errors import SpgError
from spg_pipe.images.files import IMAGE_EXTENSIONS
from spg_pipe.pipeline.console import exit_code
from spg_pipe.predict.predictor import Predictor

SHAPES = [(32, 32), (50, 31), (1, 20), (90, 1), (300, 200)]
THRESHOLD = 0.5


def command(*words: object) -> int:
    return exit_code(lambda: app(["export", *map(str, words), "--quiet"]))


@pytest.fixture(scope="module")
def out(detector: Path) -> Path:
    """One export in all formats; tracing takes long."""
    path = detector.parent / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
        given = ["--threshold", THRESHOLD, "--pixel-threshold", 0.75, "--openvino", "--torch"]
        assert command(detector, path, *given) == 0
    return path


def image_of(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(shape[0]).integers(0, 256, (*shape, 3), dtype=np.uint8)


def card(out: Path) -> dict[str, Any]:
    return json.loads((out / "card.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "read"),
    [
        (formats.ONNX, formats.read_onnx),
        (formats.OPENVINO, formats.read_openvino),
        (formats.TORCH, formats.read_torch),
    ],
)
def test_each_file_judges_images_of_any_size_as_predict_does(
    out: Path, predictor: Predictor, file: str, read: Any
) -> None:
    judge = read(out / file)
    for shape in SHAPES:
        image = image_of(shape)
        anomaly_map, score = predicted(predictor, image)
        found = judge(image)
        np.testing.assert_allclose(found[0], anomaly_map, atol=5e-5)
        np.testing.assert_allclose(found[1], [score], atol=5e-5)
        assert found[2].tolist() == [score > THRESHOLD]


@pytest.mark.slow
def test_the_onnx_file_is_one_and_names_its_sides_and_facts(out: Path) -> None:
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (image,) = session.get_inputs()
    assert (image.name, image.shape, image.type) == (
        "image",
        [1, "height", "width", 3],
        "tensor(uint8)",
    )
    outputs = [(each.name, each.shape, each.type) for each in session.get_outputs()]
    assert outputs == [
        ("map", ["height", "width"], "tensor(float)"),
        ("score", [1], "tensor(float)"),
        ("decision", [1], "tensor(bool)"),
    ]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["detector"] == card(out)["detector"]
    assert (facts["threshold"], facts["pixel_threshold"]) == ("0.5", "0.75")
    assert sorted(path.name for path in out.iterdir()) == [
        "card.json",
        "card.md",
        "model.onnx",
        "model.pt2",
        "openvino",
        "run.py",
    ]


@pytest.mark.slow
def test_the_card_says_what_it_is_and_the_digests_are_those_of_the_files(
    out: Path, predictor: Predictor
) -> None:
    said, record = card(out), predictor.detector.record
    assert said["licences"] == list(record.licences)
    assert said["fitted_on"]["auxiliary"] == "parts/test"
    assert said["image_threshold"] == {"value": 0.5, "says": "set by hand"}
    assert said["calibration"] is None
    assert said["precision"] == "float32"
    assert set(said["agreement"]) == {"onnx", "openvino", "torch"}
    assert all(each["map"] <= check.MOST for each in said["agreement"].values())
    for name, each in said["files"].items():
        content = (out / name).read_bytes()
        assert each == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = (out / "card.md").read_text()
    for words in (said["detector"], "set by hand", *record.licences):
        assert words in text


@pytest.mark.slow
def test_the_runner_needs_two_packages_and_gives_a_line_an_image(
    out: Path, predictor: Predictor, tmp_path: Path
) -> None:
    photograph(tmp_path / "in" / "a.png", (40, 30))
    turned = Image.open(photograph(tmp_path / "b.png", (25, 60)))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "in" / "b.png", exif=exif)
    Image.fromarray(np.full((9, 9), 7, np.uint16)).save(tmp_path / "in" / "deep.png")
    (tmp_path / "in" / "deep_alpha.png").write_bytes(png_of(9, 9, depth=16, colour=4))
    (tmp_path / "in" / "huge.png").write_bytes(png_of(20_000, 20_000, depth=8, colour=0))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    script = "import sys; sys.modules['torch'] = sys.modules['spg_pipe'] = None; import runpy; "
    script += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [out / "run.py", tmp_path / "in", "--maps", tmp_path / "maps"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1  # of the others
    first, second, deep, deep_alpha, huge = map(json.loads, done.stdout.splitlines())
    for line, name in ((first, "a"), (second, "b")):
        with Image.open(tmp_path / "in" / f"{name}.png") as opened:
            pixels = np.asarray(opened)
        pixels = np.rot90(pixels, -1) if name == "b" else pixels
        anomaly_map, score = predicted(predictor, np.ascontiguousarray(pixels))
        assert line["score"] == pytest.approx(score, abs=5e-5)
        assert line["decision"] == ("anomalous" if score > THRESHOLD else "normal")
        assert line["peak"] == pytest.approx(anomaly_map.max(), abs=5e-5)
        assert anomaly_map[line["peak_row"], line["peak_column"]] > anomaly_map.max() - 1e-5
        written = np.asarray(Image.open(line["map"])) / 65535
        np.testing.assert_allclose(written, anomaly_map, atol=2e-5)
    assert "more than 8 bits" in deep["error"]
    assert "more than 8 bits" in deep_alpha["error"]
    assert "decompression bomb" in huge["error"]


def png_of(width: int, height: int, *, depth: int, colour: int) -> bytes:
    """A PNG with a row of zeros, whatever size its header says."""
    row = zlib.compress(bytes(1 + width * depth // 8 * (1 + colour // 4)) * min(height, 9))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", row), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


class _Model:
    """What the runner asks of a session: a score and a decision, which hold until a day."""

    def __init__(self, valid_until: str) -> None:
        self.facts = {"exif": "false", "valid_until": valid_until}

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map=self.facts)

    def run(self, _: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.zeros(feeds["image"].shape[1:3], np.float32), np.ones(1), np.array([True])]


@pytest.mark.parametrize(("days", "code"), [(-1, 1), (0, 0), (None, 0)])
def test_the_runner_decides_nothing_after_the_last_day(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    days: int | None,
    code: int,
) -> None:
    last_day = "" if days is None else str(date.today() + timedelta(days=days))
    monkeypatch.setattr(runner, "InferenceSession", lambda *_: _Model(last_day))
    monkeypatch.setattr("sys.argv", ["run.py", str(photograph(tmp_path / "a.png"))])
    with pytest.raises(SystemExit) as left:
        runner.main()
    assert left.value.code == code
    said = capsys.readouterr()
    assert json.loads(said.out)["decision"] == (None if code else "anomalous")
    assert (f"held until {last_day}" in said.err) == bool(code)


def test_the_runner_fits_a_screen_and_imports_nothing_else() -> None:
    source = Path(formats.__file__).with_name("runner.py").read_text()
    assert len(source.splitlines()) <= 60
    found = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert found == {
        *("argparse", "datetime", "json", "pathlib"),
        *("numpy", "onnxruntime", "PIL"),
    }
    assert ENDINGS < IMAGE_EXTENSIONS


def test_what_differs_is_refused_and_nothing_is_left(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = predictor.backbone.spec.preprocess.size
    expected = [predicted(predictor, image) for image in made_up(size)]

    def judge(image: np.ndarray, by: float) -> list[np.ndarray]:
        anomaly_map, score = predicted(predictor, image)
        return [anomaly_map + np.float32(by), np.float32([score])]

    agreed = require_agreement(lambda image: judge(image, 5e-5), expected, size, "onnx")
    assert agreed.images == 5
    assert (agreed.map, agreed.score) == (pytest.approx(5e-5, abs=1e-6), pytest.approx(0, abs=1e-6))
    with pytest.raises(SpgError, match=r"onnx differs from `predict` by 0\.0002 in maps"):
        require_agreement(lambda image: judge(image, 2e-4), expected, size, "onnx")
    with pytest.raises(SpgError, match="differs"):
        require_agreement(lambda image: judge(image, np.nan), expected, size, "onnx")
    for name in ("traced", "write_onnx"):
        monkeypatch.setattr(f"spg_pipe.deploy.export.{name}", lambda *_: None)
    reading = {"onnx": lambda _: lambda image: judge(image, 1)}
    monkeypatch.setattr("spg_pipe.deploy.export._READ", reading)
    with pytest.raises(SpgError, match="Nothing was written"):
        export(predictor, tmp_path / "out", ["onnx"], name="bolts", say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_words_of_a_card_stay_in_their_cells(predictor: Predictor) -> None:
    changes = {"licences": ("MIT\n# <b>",), "versions": {"x|y": "1"}}
    card = card_of("a|b <c>", predictor, None, None).model_copy(update=changes)
    lines = in_words(card).splitlines()
    assert lines[0] == r"# a\|b \<c>"
    assert lines[-2:] == [r"| licence | MIT\n# \<b> |", r"| made with | x\|y 1 |"]


def test_openvino_tells_nobody_of_an_export(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="did not run: the extra openvino is not installed")
    code = (
        "import sys; from pathlib import Path; from contextlib import suppress\n"
        "from spg_pipe.deploy import formats\n"
        "with suppress(Exception): formats.{}\n"
        "assert 'openvino' in sys.modules; print(sys.modules['openvino_telemetry'])"
    )
    for call in ("write_openvino(Path('a.onnx'), Path('a.xml'))", "read_openvino(Path('a.xml'))"):
        words = [sys.executable, "-c", code.format(call)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout == "None\n"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SpgError, match=r"pip install 'spg-pipe\[openvino\]'"):
        formats.write_openvino(tmp_path / "model.onnx", tmp_path / "model.xml")

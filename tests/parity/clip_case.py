"""CLIP tokens against the reference, through the adapter that `extract` uses."""

from __future__ import annotations

import torch

from parity.cases import Case, Comparison, compare
from spg_pipe.backbones.base import Backbone
from spg_pipe.backbones.openclip import load_visual, open_clip_vit
from spg_pipe.backbones.spec import BackboneSpec, PosEmbed
from spg_pipe.backbones.weights import Weights
from spg_pipe.images.preprocess import Preprocess


def build_case(case: Case, pos_embed: PosEmbed = "bilinear") -> tuple[Backbone, torch.Tensor]:
    """The case's tower behind our adapter, all blocks, in protocol spg, and its position table."""
    side, patch = case.array("image").shape[-1], int(case.scalar("patch"))
    config = {
        "embed_dim": int(case.scalar("output_dim")),
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": int(case.scalar("input_resolution")),
            "patch_size": patch,
            "width": int(case.scalar("width")),
            "layers": int(case.scalar("layers")),
            "head_width": int(case.scalar("width")) // int(case.scalar("heads")),
        },
    }
    state = {
        name.removeprefix("w:"): torch.from_numpy(case.array(name))
        for name in case.arrays
        if name.startswith("w:")
    }
    spec = BackboneSpec(
        alias=case.name,
        family="open_clip",
        model=case.name,
        layers=tuple(str(block + 1) for block in range(int(case.scalar("layers")))),
        norm="post",
        patch_size=patch,
        preprocess=Preprocess(side, "uint8", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        pos_embed=pos_embed,
        prefix="cls",
        weights="reference",
        weights_sha256="",
        licence="",
    )
    visual = load_visual(config, Weights(state, "reference", ""))
    return open_clip_vit(visual, spec, "cpu"), visual.positional_embedding.detach()


def compare_case(case: Case) -> list[Comparison]:
    """Tokens of every stored layer, the class token of the last, the resized position table."""
    backbone, table = build_case(case)
    layers = backbone(torch.from_numpy(case.array("image")))
    got = {
        f"tokens_layer{name}": torch.cat([tokens.prefix, tokens.patches], dim=1)
        for name, tokens in layers.items()
    }
    got["cls"] = layers[backbone.spec.layers[-1]].prefix[:, 0]
    got["pos_embed_after"] = table
    return [
        compare(name, value, case.array(name), case.tol(name))
        for name, value in got.items()
        if case.has(name)
    ]

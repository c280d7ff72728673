"""Weights: read a state dict, fingerprint it, load it strictly. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from spg_pipe.errors import SpgError

StateDict = dict[str, Tensor]

_NESTS = ("model_ema", "teacher", "model", "module", "state_dict")
_PREFIXES = ("module.", "backbone.")


@dataclass(frozen=True)
class Weights:
    """A state dict with its origin."""

    state: StateDict
    label: str
    """For people: ``file: NAME`` or the hub's name of the model."""
    sha256: str


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    ``module.`` or ``backbone.`` is removed.

    Raises
    ------
    SpgError
        If the file is missing, damaged, of another kind, or holds anything but tensors.
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
        # torch.load and safetensors share no error class; whatever they say, the file is at fault.
        archive = "TorchScript" in str(error)
        reason = "a TorchScript archive" if archive else _first_line(error)
        raise SpgError(
            f"Cannot read weights from {path.name}: {reason}. Expected .safetensors, or a .pth "
            "that holds only tensors (it is read with weights_only=True, never unpickled)."
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


def weights_from_file(path: Path) -> Weights:
    """Read `path` (see `read_state_dict`).

    The SHA-256 is that of the tensors, as for a hub's weights: a detector made from downloaded
    weights accepts the same weights from a file.
    """
    state = read_state_dict(path)
    return Weights(state, f"file: {path.name}", state_sha256(state))


def load_strictly(
    model: nn.Module, state: Mapping[str, Tensor], label: str, *, drop: Collection[str] = ()
) -> None:
    """Load `state` into `model`, whose dtype is kept: nothing may lack or be left over.

    Names that begin with one of `drop`, such as a classifier's, are left out. Raises SpgError with
    `label` (where the weights came from) and a few of the missing, unexpected and misshapen names.
    """
    own = model.state_dict()
    given = {k: v for k, v in state.items() if k in own or not k.startswith(tuple(drop))}
    # Old checkpoints lack this counter, which evaluation never reads.
    missing = [k for k in own if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in own]
    misshapen = [
        f"{k} is {tuple(given[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in given and given[k].shape != own[k].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        words = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in faults.items()
            if names
        ]
        raise SpgError(
            f"The weights ({label}) do not fit {type(model).__name__}: {'; '.join(words)}."
            f"{_naming_hint(state)}"
        )
    model.load_state_dict(given, strict=False)


def _naming_hint(state: Mapping[str, Tensor]) -> str:
    marks = ("layer.", "embeddings.", "encoder.layer.", "vision_model.", "model.layer.")
    if any(k.startswith(marks) for k in state):
        return (
            " The names are those of Hugging Face transformers; expected timm's names or the "
            "authors' original .pth. Take the file of the timm model's hub page."
        )
    return " Check that the file belongs to this backbone (same size, patch, registers)."


def _first_line(error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        return "it is damaged, or holds Python objects besides tensors"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

"""Tensors of an artefact on disk: safetensors, whole, and checked when they are read."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.errors import SpgError

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(path: Path, tensors: "dict[str, Tensor]") -> str:
    """Write tensors by name; the SHA-256 of the file, for the config beside it.

    Not `safetensors.torch.save_file`, which makes a file that only its owner may read.
    """
    from safetensors.torch import save

    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = save(ready)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_tensors(path: Path, sha256: str, what: str, again: str) -> "dict[str, Tensor]":
    """Read tensors that `save_tensors` wrote.

    Parameters
    ----------
    sha256 : str
        What `save_tensors` returned.
    what, again : str
        For the error: the artefact's noun, and the command that makes it again.

    Raises
    ------
    SpgError
        If the file is missing, cannot be read, or holds other bytes.
    """
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpgError(
            f"{path.parent} is not a whole {what}: {path.name} cannot be read "
            f"({error.strerror}). Check its permissions, copy it again, or run `{again}`."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SpgError(
            f"{path.parent} is not a whole {what}: {path.name} is damaged (SHA-256 {found[:8]}…, "
            f"expected {sha256[:8]}…). Copy it again, or run `{again}`."
        )
    return load(content)

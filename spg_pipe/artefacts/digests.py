"""Files of an artefact beside its JSON, held against their SHA-256.

Zarr reads a flipped byte as another number and a lost chunk as NaN, and safetensors would not
notice either: neither may become a result.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.artefacts.record import damaged

if TYPE_CHECKING:
    from torch import Tensor


def file_digests(folder: Path, *names: str) -> dict[str, str]:
    """Relative path → SHA-256 of some files of a folder; of a folder in it, all files below."""
    roots = [folder / name for name in names]
    files = [f for root in roots for f in ([root] if root.is_file() else root.rglob("*"))]
    return {
        path.relative_to(folder).as_posix(): _sha256(path.read_bytes())
        for path in sorted(files)
        if path.is_file()
    }


def require_files(folder: Path, digests: Mapping[str, str], what: str, command: str) -> None:
    """Hold files of a folder against their digests (`file_digests`).

    Parameters
    ----------
    what, command : str
        For the error: the artefact's name in words, and the command that makes it again.

    Raises
    ------
    DamagedError
        If a file is missing or holds other bytes.
    """
    for name, sha256 in digests.items():
        _content(folder, name, sha256, what, command)


def save_tensors(path: Path, tensors: "dict[str, Tensor]") -> str:
    """Write tensors by name as safetensors; the SHA-256 of the file, for the record beside it.

    Not `safetensors.torch.save_file`, which makes a file that only its owner may read.
    """
    from safetensors.torch import save

    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_bytes(path, content)
    return _sha256(content)


def load_tensors(path: Path, sha256: str, what: str, command: str) -> "dict[str, Tensor]":
    """Read tensors that `save_tensors` wrote, held against the digest that it returned.

    Parameters and errors as of `require_files`.
    """
    from safetensors.torch import load

    return load(_content(path.parent, path.name, sha256, what, command))


def _content(folder: Path, name: str, sha256: str, what: str, command: str) -> bytes:
    """The bytes of a file with this digest."""
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        fault = f"{name} cannot be read ({error.strerror})"
        raise damaged(folder, what, fault, command) from error
    if (found := _sha256(content)) != sha256:
        fault = f"{name} is damaged (SHA-256 {found[:8]}…, expected {sha256[:8]}…)"
        raise damaged(folder, what, fault, command)
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

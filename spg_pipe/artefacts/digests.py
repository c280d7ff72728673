"""Files of an artefact beside its JSON, held against their SHA-256.

Zarr reads a flipped byte as another number and a lost chunk as NaN, and safetensors would not
notice either: neither may become a result.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.artefacts.reading import damaged, read_file, reading

if TYPE_CHECKING:
    from torch import Tensor

CURVE = "curve.csv"
"""Beside what was trained: the losses of its steps."""
_LARGEST = 1e9
"""Of a tensor's values: beyond, products with tokens could overflow float32."""


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

    A `DamagedError` if a file is missing or holds other bytes.

    Parameters
    ----------
    what, command : str
        For the error: the artefact's name in words, and the command that makes it again.
    """
    for name, sha256 in digests.items():
        _content(folder, name, sha256, what, command)


def read_beside(
    folder: Path, name: str, digests: Mapping[str, str], what: str, command: str
) -> bytes | None:
    """The bytes of a file that a record may have beside it, None where it has none.

    Parameters
    ----------
    digests : mapping of name → SHA-256
        Of the record; empty in those of older versions, whose files are read as they are.
    what, command : str
        As for `require_files`, as are the errors.
    """
    if name in digests:
        return _content(folder, name, digests[name], what, command)
    path = folder / name
    if digests or not path.is_file():
        return None
    with reading(path, what, command):
        return read_file(path)


def save_tensors(path: Path, tensors: "dict[str, Tensor]") -> str:
    """Write tensors by name as safetensors; the SHA-256 of the file, for the record beside it.

    Not `safetensors.torch.save_file`, which makes a file that only its owner may read.
    """
    from safetensors.torch import save

    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_bytes(path, content)
    return _sha256(content)


def load_tensors(
    path: Path, sha256: str, what: str, command: str, *, most: int | None = None
) -> "dict[str, Tensor]":
    """Read tensors that `save_tensors` wrote, held against the digest that it returned.

    Parameters and errors as of `require_files`; also damaged are tensors that hold NaN, an
    infinity or a number beyond 1e9, and a file of more than `most` bytes.
    """
    from safetensors.torch import load

    with reading(path, what, command):
        tensors = load(_content(path.parent, path.name, sha256, what, command, most))
        for name, values in tensors.items():
            if values.is_floating_point() and values.numel():
                low, high = map(float, values.aminmax())  # NaN if any value is
                if not (low >= -_LARGEST and high <= _LARGEST):
                    raise ValueError(f"the tensor {name} has values from {low:g} to {high:g}")
    return tensors


def _content(
    folder: Path, name: str, sha256: str, what: str, command: str, most: int | None = None
) -> bytes:
    """The bytes of a file with this digest."""
    with reading(folder / name, what, command):
        try:
            content = read_file(folder / name, most)
        except FileNotFoundError as error:
            fault = f"{name} cannot be read ({error.strerror})"
            raise damaged(folder, what, fault, command) from error
    if (found := _sha256(content)) != sha256:
        fault = f"{name} is damaged (SHA-256 {found[:8]}…, expected {sha256[:8]}…)"
        raise damaged(folder, what, fault, command)
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Weights from a file, an installed package or a hub; fingerprinted, and loaded strictly.

Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spg_pipe.backbones.packaged import PACKAGES
from spg_pipe.errors import SpgError

if TYPE_CHECKING:
    from spg_pipe.backbones.load import Request
    from spg_pipe.backbones.names import BackboneInfo

StateDict = dict[str, Tensor]

PROBE_TIMEOUT = 5.0
"""Seconds. The hub's own client retries an unreachable host for about half a minute a file."""
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


def weights_for(
    request: Request, repo: str | None, files: Sequence[str], url: str | None = None
) -> Weights:
    """The weights of the file that was named, else of an installed package, else of the hub.

    Parameters
    ----------
    repo : str, optional
        ``owner/name`` on the hub. What its client has in its cache needs no connection.
    files : sequence of str
        The first of these that the repository has is taken.
    url : str, optional
        Where the weights are, for the message where no hub has them.

    Raises
    ------
    SpgError
        If the file, the package or the hub's files cannot be read, or the hub asks for a login.
    """
    info = request.info
    if request.weights is not None:
        return weights_from_file(request.weights)
    if package := PACKAGES.get(info.alias):
        return Weights(package.state(), f"package: {package.release}", package.sha256)
    if not repo:
        file = (url or "").rpartition("/")[2]
        raise _no_access(info, url, file, "no hub has published weights of this name")
    try:
        state = read_state_dict(_fetch(repo, files))
    except SpgError:
        raise
    except Exception as error:
        # The hub's client raises its own, the HTTP library's and the system's errors alike.
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise _no_access(info, f"https://huggingface.co/{repo}", files[0], reason) from error
    return Weights(state, f"hub: {repo}", state_sha256(state))


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
        raise SpgError(
            f"Cannot read weights from {path.name}: {_first_line(error)}. Expected .safetensors, "
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


def _fetch(repo: str, files: Sequence[str]) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import get_session

    for name in files:
        if isinstance(cached := try_to_load_from_cache(repo, name), str):
            return Path(cached)
    get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT)
    for name in files:
        with contextlib.suppress(EntryNotFoundError):
            return Path(hf_hub_download(repo, name))
    raise FileNotFoundError(f"it has no file {' or '.join(files)}")


def _no_access(info: BackboneInfo, page: str | None, file: str, reason: str) -> SpgError:
    gate = (
        "It is gated: log in there, accept its licence, then run `hf auth login` (older: "
        "`huggingface-cli login`) or set HF_TOKEN. "
    )
    return SpgError(
        f"Cannot get the weights of {info.alias} ({info.model}, licence: {info.licence}): "
        f"{reason}\nTheir page: {page or 'none is known'}. {gate if info.gated else ''}"
        f"Without a connection, copy {file or 'the file'} from another machine and pass "
        "`--weights FILE` (.safetensors or .pth) to a command, or set `backbone.weights` in "
        "params.yaml for `dvc repro`.\n"
        "`spg-pipe backbones` lists the backbones whose weights need no download."
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        return "it is damaged, or holds Python objects besides tensors"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

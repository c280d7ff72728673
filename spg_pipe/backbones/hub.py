"""Weights from a hub: into its own cache or not at all, and one clear message when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spg_pipe.backbones.names import BackboneInfo
from spg_pipe.backbones.weights import Weights, read_state_dict, state_sha256
from spg_pipe.errors import SpgError

PROBE_TIMEOUT = 5.0
"""Seconds. The hub's own client retries an unreachable host for about half a minute a file."""


def weights_from_hub(info: BackboneInfo, repo: str, files: Sequence[str]) -> Weights:
    """Fetch the first of `files` that `repo` (``owner/name``) has; cached ones need no connection.

    Raises SpgError if the hub is unreachable, asks for a login, or lacks the files.
    """
    try:
        state = read_state_dict(_fetch(repo, files))
    except SpgError:
        raise
    except Exception as error:
        # The hub's client raises its own, the HTTP library's and the system's errors alike.
        raise _no_access(info, f"https://huggingface.co/{repo}", files[0], error) from error
    return Weights(state, f"hub: {repo}", state_sha256(state))


def weights_from_url(info: BackboneInfo, url: str) -> Weights:
    """Fetch `url` into torch's hub cache; raise SpgError if it is empty or unreachable."""
    import torch

    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        if not path.is_file():
            if not url:
                raise FileNotFoundError("no published weights are known for this name")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, RuntimeError) as error:
        raise _no_access(info, url, name, error) from error
    state = read_state_dict(path)
    return Weights(state, f"url: {url}", state_sha256(state))


def _fetch(repo: str, files: Sequence[str]) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import get_session

    for name in files:
        if isinstance(cached := try_to_load_from_cache(repo, name), str):
            return Path(cached)
    get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT)
    for name in files[:-1]:
        try:
            return Path(hf_hub_download(repo, name))
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(repo, files[-1]))


def _no_access(info: BackboneInfo, page: str, file: str, error: Exception) -> SpgError:
    first_line = str(error).strip().partition("\n")[0][:200]
    gate = (
        "It is gated: log in there, accept its licence, then run `hf auth login` (older: "
        "`huggingface-cli login`) or set HF_TOKEN. "
        if info.gated
        else ""
    )
    return SpgError(
        f"Cannot get the weights of {info.alias} ({info.model}, licence: {info.licence}): "
        f"{type(error).__name__}: {first_line}\n"
        f"Their page: {page or 'none is known'}. {gate}"
        f"Without a connection, copy {file or 'the file'} from another machine and pass "
        "`--weights FILE` (.safetensors or .pth) to a command, or set `backbone.weights` in "
        "params.yaml for `dvc repro`.\n"
        "`spg-pipe backbones` lists the backbones whose weights need no download."
    )

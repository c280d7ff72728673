"""Where a backbone's weights come from: a named file, an installed package, or the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from spg_pipe.artefacts.reading import in_words
from spg_pipe.backbones.names import BackboneInfo, Request
from spg_pipe.backbones.packaged import PACKAGES
from spg_pipe.backbones.weights import (
    Weights,
    read_state_dict,
    state_sha256,
    weights_from_file,
)
from spg_pipe.errors import SpgError

PROBE_TIMEOUT = 5.0
"""Seconds. The hub's own client retries an unreachable host for about half a minute a file."""


def weights_for(
    request: Request, repo: str | None, files: Sequence[str], url: str | None = None
) -> Weights:
    """The weights of the file that was named, else of an installed package, else of the hub.

    An `SpgError` if the file, the package or the hub's files cannot be read, or the hub asks for a
    login.

    Parameters
    ----------
    repo : str, optional
        ``owner/name`` on the hub. What its client has in its cache needs no connection.
        `request.say` is told of anything else before the hub is contacted, and its size before it
        is fetched.
    files : sequence of str
        The first of these that the repository has is taken.
    url : str, optional
        Where the weights are, for the message where no hub has them.
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
        state = read_state_dict(_fetch(request, repo, files))
    except SpgError:
        raise
    except Exception as error:
        # The hub's client raises its own, the HTTP library's and the system's errors alike.
        reason = f"{type(error).__name__}: {in_words(error)}"
        raise _no_access(info, f"https://huggingface.co/{repo}", files[0], reason) from error
    return Weights(state, f"hub: {repo}", state_sha256(state))


def _fetch(request: Request, repo: str, files: Sequence[str]) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.file_download import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import get_session

    for name in files:
        if isinstance(cached := try_to_load_from_cache(repo, name), str):
            return Path(cached)
    alias, host = request.info.alias, constants.ENDPOINT
    request.say(f"The weights of {alias} are not in the cache: asking {host} for {repo}.")
    get_session().head(host, timeout=PROBE_TIMEOUT)
    for name in files:
        with contextlib.suppress(EntryNotFoundError):
            size = get_hf_file_metadata(hf_hub_url(repo, name), timeout=PROBE_TIMEOUT).size
            megabytes = f"{size / 1e6:,.0f} MB" if size else "of unknown size"
            request.say(f"Downloading {name} of {repo} ({megabytes}) to {constants.HF_HUB_CACHE}.")
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

"""Weights that cannot be had: one clear message, quickly, and nothing left behind."""

from __future__ import annotations

import re
import time
from typing import NamedTuple
from unittest.mock import MagicMock

import pytest

from spg_pipe.backbones import hub, load_backbone
from spg_pipe.errors import SpgError


class Size(NamedTuple):
    size: int


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub whose port is closed, and empty caches."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dinov3", ["dinov3-large", "License", "gated", "HF_TOKEN", "timm/vit_large_patch16"]),
        ("dinov2-small", ["Apache-2.0", "timm/vit_small_patch14_dinov2.lvd142m"]),
        ("dinov3-convnext-tiny", ["DINOv3 License", "gated"]),
        ("openclip", ["MIT", "timm/vit_large_patch14_clip_336.openai"]),
        ("timm:test_vit", ["timm/test_vit.r160_in1k"]),
    ],
)
def test_an_unreachable_download_is_one_quick_message(unreachable, name, parts):
    started = time.monotonic()
    with pytest.raises(SpgError) as caught:
        load_backbone(name)
    assert time.monotonic() - started < 60  # the hub's own client retries for minutes
    message = str(caught.value)
    page, ways = "https://huggingface.co/", ("--weights FILE", "`backbone.weights` in params.yaml")
    for part in (*parts, *ways, page, "spg-pipe backbones"):
        assert part in message
    assert not list(unreachable.rglob("*.safetensors*"))


def test_a_refused_download_is_the_same_message(monkeypatch):
    def refuse(*_):
        raise PermissionError("403 Client Error: access to this model is restricted")

    monkeypatch.setattr(hub, "_fetch", refuse)
    with pytest.raises(SpgError, match=r"403 Client Error.*\n.*hf auth login"):
        load_backbone("dinov3")


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("vit_base_patch16_18x2_224", "none is known"),
        ("gcvit_tiny", r"https://github\.com/.*gcvit_tiny.*copy gcvit_tiny.*\.pth"),
    ],
)
def test_a_model_without_weights_on_a_hub_says_where_they_are(unreachable, name, page):
    with pytest.raises(SpgError, match=rf"no hub has published weights.*\n.*page: {page}"):
        load_backbone(name)


def test_a_download_is_named_before_anybody_is_contacted(unreachable, monkeypatch):
    said: list[str] = []

    def contacted(*_: object) -> None:
        raise ConnectionError(f"contacted after {len(said)} lines")

    monkeypatch.setattr("huggingface_hub.utils.get_session", contacted)
    with pytest.raises(SpgError, match="contacted after 1 lines"):
        load_backbone("dinov2-small", say=said.append)
    host = r"http://127\.0\.0\.1:9 for timm/vit_small_patch14_dinov2\.lvd142m"
    assert re.fullmatch(
        rf"The weights of dinov2-small .*not in the cache: asking {host}\.", said[0]
    )


def test_the_size_of_a_download_is_told_before_it_starts(unreachable, monkeypatch):
    said: list[str] = []

    def fetched(*_: object) -> str:
        raise ConnectionError(f"fetched after {len(said)} lines")

    monkeypatch.setattr("huggingface_hub.utils.get_session", MagicMock())
    monkeypatch.setattr(
        "huggingface_hub.file_download.get_hf_file_metadata", lambda *_, **__: Size(88_250_000)
    )
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    with pytest.raises(SpgError, match="fetched after 2 lines"):
        load_backbone("dinov2-small", say=said.append)
    assert re.match(r"Downloading model\.safetensors of timm/vit_\S+ \(88 MB\) to /", said[1])

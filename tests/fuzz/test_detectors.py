"""Whatever a detector's folder holds: an SpgError, or a detector with finite scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from tiny import METHOD, additive_plan, sae_params

from fuzz.harness import nothing_outside
from fuzz.mutations import as_text, damaged_bytes, damaged_json, message_of
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.backbones import load_backbone
from spg_pipe.bank.fitted import FittedBank, GoodImages, fit_bank
from spg_pipe.bank.normal_patches import tokens_of_store
from spg_pipe.bank.record import BankRecord
from spg_pipe.detector.judge import judge
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import DetectorRecord
from spg_pipe.errors import SpgError
from spg_pipe.predict.predictor import load_predictor
from spg_pipe.recipe.params import BankParams
from spg_pipe.sae.run import SaeRecord, SaeRun
from spg_pipe.sae.train import train_sae


@dataclass(frozen=True, repr=False)  # without its pages of numbers in Hypothesis' reports
class Parts:
    config: Any
    tensors: dict[str, torch.Tensor]
    content: bytes
    """Of the tensors' file."""


@pytest.fixture(scope="module")
def detectors(tiny_store, tiny_sae, tiny_detector, tmp_path_factory) -> list[Parts]:
    """Record, tensors and their file of a detector of each rule."""
    base = tmp_path_factory.mktemp("fuzz")
    tiny_detector.save(base / "published")
    make_detector(tiny_store, additive_plan(tiny_sae))[0].save(base / "additive")
    return [parts(base / name, "detector") for name in ("published", "additive")]


def parts(folder: Path, name: str) -> Parts:
    content = (folder / f"{name}.safetensors").read_bytes()
    return Parts(json.loads((folder / "config.json").read_text()), load(content), content)


@pytest.fixture(scope="module")
def saes(tiny_store, tmp_path_factory) -> list[Parts]:
    """Of each activation."""
    found = []
    for activation in ("topk", "batch_topk"):
        place = tmp_path_factory.mktemp(activation) / "sae"
        run, quality, curve = train_sae(
            tiny_store, sae_params(epochs=1, activation=activation), METHOD, seed=1
        )
        run.save(place, quality, curve)
        found.append(parts(place, "sae"))
    return found


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture(scope="module")
def tokens(tiny_store) -> dict[str, torch.Tensor]:
    """Of two images."""
    rows, by_layer = np.array([0, 5]), {}
    for layer in tiny_store.layers:
        prefix = tiny_store.cls(layer, rows)[:, None]
        whole = np.concatenate([prefix, tiny_store.tokens(layer, rows)], axis=1)
        by_layer[layer] = torch.from_numpy(whole).float()
    return by_layer


def sealed(config: Any, model: Any) -> Any:
    """With the fingerprint that its content gives: a stranger can compute it, too."""
    if not isinstance(config, dict):
        return config
    config = {key: value for key, value in config.items() if key != "seal"}
    content = {key: value for key, value in config.items() if key not in model.BESIDE}
    try:
        return config | {"fingerprint": fingerprint(content)}
    except (ValueError, RecursionError):
        return config


@st.composite
def other_tensors(draw: st.DrawFn, tensors: dict[str, torch.Tensor]) -> bytes:
    """A valid file with tensors of other values, dtypes, shapes or names."""
    changed = dict(tensors)
    name = draw(st.sampled_from(sorted(tensors)))
    values = tensors[name].clone()
    how = draw(st.sampled_from(["value"] * 3 + ["dtype", "shape", "name", "drop", "more"]))
    if how == "value" and values.numel():
        place = draw(st.integers(0, values.numel() - 1))
        number = draw(st.sampled_from([0.0, -1.0, 1e5, 1e19, 3e38, np.nan, np.inf]))
        values.view(-1)[place] = number if values.is_floating_point() else 255
        changed[name] = values
    elif how == "dtype":
        kinds = [torch.float16, torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn]
        changed[name] = values.to(draw(st.sampled_from(kinds)))
    elif how == "shape":
        values = values.reshape(-1) if values.ndim == 0 else values
        changes = [values[:1], values[None], values.flatten(), values[..., :0], values[..., None]]
        changed[name] = draw(st.sampled_from(changes)).contiguous()
    elif how == "name":
        changed[name.replace("1.", "9.") + "x"] = changed.pop(name)
    elif how == "more":
        changed["1.spare"] = values
    else:
        del changed[name]
    return save(changed)


@st.composite
def damaged_folder(draw: st.DrawFn, whole: Parts, model: Any) -> tuple[bytes, bytes]:
    """config.json and the tensors' file of an artefact, mostly with a right digest."""
    config, content = whole.config, whole.content
    if draw(st.booleans()):
        config = draw(damaged_json(config))
    else:
        content = draw(other_tensors(whole.tensors) | damaged_bytes(content))
    if isinstance(config, dict) and draw(st.integers(0, 9)):
        config = sealed({**config, "tensors_sha256": sha256(content).hexdigest()}, model)
    return draw(as_text(config)), content


def written(place: Path, name: str, config: bytes, content: bytes) -> Path:
    place.mkdir(exist_ok=True)
    (place / "config.json").write_bytes(config)
    (place / f"{name}.safetensors").write_bytes(content)
    return place


@given(data=st.data())
def test_a_damaged_detector_is_an_error_or_gives_scores_that_are_numbers(
    detectors, tokens, tiny_store, fuzzed, data
):
    files = data.draw(damaged_folder(data.draw(st.sampled_from(detectors)), DetectorRecord))
    place, spec = written(fuzzed / "detector", "detector", *files), tiny_store.spec

    def loads_and_judges() -> None:
        detector = Detector.load(place)
        detector.check_backbone(spec.backbone, "the store")
        shapes = {layer: shape.grid for layer, shape in spec.layers.items()}
        judged = judge(detector, tokens, shapes, spec.backbone, detector.rule())
        assert np.isfinite(judged.columns["score"]).all()
        assert all(values.isfinite().all() for values in judged.patches.values())

    message_of(loads_and_judges)


@given(data=st.data())
def test_a_damaged_sae_is_an_error_or_reconstructs_numbers(saes, fuzzed, data):
    files = data.draw(damaged_folder(data.draw(st.sampled_from(saes)), SaeRecord))
    place = written(fuzzed / "sae", "sae", *files)

    def loads_and_runs() -> None:
        for sae in SaeRun.load(place).layers.values():
            assert sae(torch.zeros(2, sae.encoder.shape[1])).x_hat.isfinite().all()

    message_of(loads_and_runs)


@pytest.fixture(scope="module")
def judge_and_bank(tiny_store, tiny_sae, tmp_path_factory) -> tuple[Detector, Parts]:
    """A detector, and a bank of three images beside it."""
    base, rows = tmp_path_factory.mktemp("bank"), np.array([0, 1, 2])
    detector = make_detector(tiny_store, additive_plan(tiny_sae))[0]
    goods = GoodImages(tokens_of_store(tiny_store, rows), [(f"{n}.png", "") for n in rows], None)
    fit_bank(goods, detector, tiny_store.spec.backbone, BankParams()).save(base / "b")
    return detector, parts(base / "b", "bank")


@given(data=st.data())
def test_a_damaged_bank_is_an_error_or_gives_scores_that_are_numbers(
    judge_and_bank, tokens, tiny_store, fuzzed, data
):
    detector, whole = judge_and_bank
    files = data.draw(damaged_folder(whole, BankRecord))
    place, spec = written(fuzzed / "bank", "bank", *files), tiny_store.spec.backbone
    alone = data.draw(st.booleans())

    def loads_and_judges() -> None:
        bank = FittedBank.load(place)
        bank.require_serving(detector, spec, alone=alone)
        judged = bank.judge(tokens, detector, spec, alone=alone)
        assert all(np.isfinite(values).all() for values in judged.columns.values())
        assert all(values.isfinite().all() for values in judged.patches.values())

    message_of(loads_and_judges)


NAMES = [
    "open_clip:hf-hub:laion/x",
    "open_clip:hf-hub:laion/x/y",
    "open_clip:local-dir:/etc/x",
    "local-dir:/etc",
    "hf-hub:timm/resnet18.a1_in1k",
    "timm:hf-hub:timm/resnet18.a1_in1k",
    "hf_hub:timm/resnet18",
    "https://example.com/weights.pth",
    "s3://bucket/x",
    "/etc/hosts",
    "../x",
    "timm/resnet18.a1_in1k",
    "open_clip:ViT-B-32/https://example.com",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_library_lists_contacts_nobody(name, tmp_path):
    with nothing_outside(tmp_path), pytest.raises(SpgError, match=r"nknown backbone|no weights"):
        load_backbone(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_that_names_an_address_contacts_nobody(name, tiny_detector, tmp_path):
    tiny_detector.save(tmp_path / "d")
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    config["backbone"] |= {"alias": name}
    (tmp_path / "d" / "config.json").write_text(json.dumps(sealed(config, DetectorRecord)))
    with (
        nothing_outside(tmp_path),
        pytest.raises(SpgError, match=r"backbone\.alias|nknown backbone|no weights"),
    ):
        load_predictor(Detector.load(tmp_path / "d"), (), None, "cpu", print)

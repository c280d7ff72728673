"""A detector and an SAE of a stranger: what is not valid is named, and judges nothing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from tiny import additive_plan, extracted, plan_of

from spg_pipe.artefacts.digests import load_tensors, save_tensors
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.detector import evaluate
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import DetectorRecord
from spg_pipe.detector.scores import score_store
from spg_pipe.errors import DamagedError, SpgError
from spg_pipe.recipe.params import MetricParams
from spg_pipe.sae.run import SaeRecord, SaeRun
from spg_pipe.store.shards import crc32c
from spg_pipe.store.tokens import Checksums


@pytest.fixture(scope="module")
def additive(tiny_store, tiny_sae, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("additive") / "detector"
    make_detector(tiny_store, additive_plan(tiny_sae))[0].save(path)
    return path


def rewritten(place: Path, model: Any = DetectorRecord, **changes: Any) -> Path:
    """Values at dotted keys of config.json are changed; the fingerprint is that of the new ones."""
    config = json.loads((place / "config.json").read_text())
    config.pop("seal", None)
    for key, value in changes.items():
        *above, last = key.split("/")
        parent = config
        for step in above:
            parent = parent[step]
        if value is None:
            del parent[last]
        else:
            parent[last] = value
    content = {name: value for name, value in config.items() if name not in model.BESIDE}
    (place / "config.json").write_text(
        json.dumps(config | {"fingerprint": fingerprint(content)}, ensure_ascii=False)
    )
    return place


DECISION = "rule/decision"
RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"backbone/preprocess/std": [0.0, 0.5, 0.5]}, r"preprocess\.std\.0"),
    ({"backbone/preprocess/size": 10**6}, r"preprocess\.size"),
    ({"backbone/patch_size": 0}, "patch_size"),
    ({"backbone/alias": "open_clip:hf-hub:a/b"}, r"backbone\.alias"),
    ({"backbone/alias": "local-dir:/etc"}, r"backbone\.alias"),
    ({"backbone/layers": ["1"]}, "the layers are 1, 2, expected the backbone's: 1"),
    ({"backbone/model": "\x1b[2Jred"}, r"backbone\.model: "),
    ({"backbone/weights": "CC0\x9b31m"}, r"backbone\.weights: "),
    ({"layers/1": [10**9, 4]}, r"layers\.1\.0"),
    ({"seed": -1}, "seed"),
    ({"seed": 10**30}, "seed"),
    ({f"{DECISION}/bias": 1e300}, r"decision\.bias"),
    ({f"{DECISION}/scales/1/guides": [0.0, 0.0]}, r"scales\.1\.guides"),
    ({f"{DECISION}/scales/1/guides": [0.0, 1e-300]}, r"scales\.1\.guides"),
    ({f"{DECISION}/scales/1/guides": None}, "it lacks 'guides'"),
    ({f"{DECISION}/scales/2": None}, "it lacks '2'"),
    ({f"{DECISION}/terms": {}}, "need at least one array"),
    (
        {f"{DECISION}/terms/beauty": {"weight": 1.0, "mean": 0.0, "deviation": 1.0}},
        "it lacks 'beauty'",
    ),
    ({f"{DECISION}/top_share": 0.0}, "top_share"),
    ({f"{DECISION}/map_weights/guides": 1e300}, r"map_weights\.guides"),
    ({"auxiliary/dataset": "a\nb"}, r"auxiliary\.dataset: "),
    ({"auxiliary/selection": {"limit": "x"}}, r"auxiliary\.selection\.limit"),
    ({"layers/../../x": [4, 4]}, r"layers\.\.\./\.\./x"),
]


@pytest.mark.parametrize(("changes", "message"), RECORDS, ids=lambda case: str(case)[:40])
def test_a_record_with_what_no_training_writes_is_refused(additive, copy_of, changes, message):
    place = copy_of(additive)
    if "layers/../../x" in changes:
        config = json.loads((place / "config.json").read_text())
        changes = {"layers": config["layers"] | {"../../x": [4, 4]}}
        message = "layers"
    with pytest.raises(DamagedError, match=message) as error:
        Detector.load(rewritten(place, **changes))
    assert " is not a whole detector" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "not valid JSON"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "not valid JSON|seed"),
        (b'{"kind": "detector", "format": 2, "seed": NaN}', "not valid JSON"),
        (b'{"kind": "det\xff"}', "not valid JSON"),
        (b'{"kind": "\\ud800"}', "not valid JSON"),
        (b'{"kind": "\\u001b[31mred"}', r"is of a \\x1b\[31mred"),
        (b'{"format": [[1, 2], "\\u0007"]}', "it has format"),
    ],
)
def test_json_of_any_kind_is_one_message(additive, copy_of, content, message):
    place = copy_of(additive)
    (place / "config.json").write_bytes(content)
    with pytest.raises(SpgError, match=message) as error:
        Detector.load(place)
    assert len(str(error.value)) < 1000
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "detector.safetensors"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_named_at_once(additive, copy_of, name, make):
    place = copy_of(additive)
    (place / name).unlink()
    make(place / name)
    with pytest.raises(SpgError, match=rf"{name}.*a folder, a pipe or a device"):
        Detector.load(place)


def with_tensors(place: Path, change: Any, file: str = "detector.safetensors") -> Path:
    """Other tensors, with the digest of their file in the record."""
    tensors = load((place / file).read_bytes())
    change(tensors)
    sha256 = save_tensors(place / file, tensors)
    config = json.loads((place / "config.json").read_text()) | {"tensors_sha256": sha256}
    config.pop("seal", None)
    (place / "config.json").write_text(json.dumps(config))
    return place


def put(name: str, value: float) -> Any:
    return lambda tensors: tensors[name].view(-1).__setitem__(0, value)


TENSORS = [
    (put("1.patches.vectors", np.nan), r"1\.patches\.vectors has values from nan to nan"),
    (put("2.cls.vectors", np.inf), r"2\.cls\.vectors has values from .* to inf"),
    (put("1.atoms", 3e38), r"1\.atoms has values from .* to 3e\+38"),
    (lambda t: t.update({"1.atom_ids": t["1.atom_ids"][:1]}), "layer 1 has codes or atom_ids of"),
    (lambda t: t.update({"1.cls.codes": torch.zeros(2, 99)}), "layer 1 has codes or atom_ids of"),
    (lambda t: t.pop("1.patches.vectors"), r"it lacks 'patches\.vectors'"),
    (lambda t: t.update({"1.cls.vectors": torch.zeros(2, 5)}), "mat1 and mat2 shapes"),
    (lambda t: t.update({"1.patches.vectors": torch.zeros(2, 12).half()}), "dtype"),
    (lambda t: t["1.patches.vectors"].zero_(), "it lacks 'patches'"),
]


@pytest.mark.parametrize(("change", "message"), TENSORS, ids=[m for _, m in TENSORS])
def test_tensors_that_no_training_writes_are_refused_by_name(additive, copy_of, change, message):
    with pytest.raises(DamagedError, match=message):
        Detector.load(with_tensors(copy_of(additive), change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("1.encoder", np.nan), r"1\.encoder has values from nan"),
        (lambda t: t.pop("1.dead"), "it lacks 'dead'"),
        (lambda t: t.update({"1.dead": torch.zeros(3)}), "layer 1 has no dead mask for"),
        (lambda t: t.update({"1.dictionary": torch.zeros(2, 2)}), "Error.s. in loading state_dict"),
    ],
)
def test_an_sae_with_other_tensors_is_refused(tiny_sae, tmp_path, change, message):
    tensors = {
        f"{layer}.{name}": value.detach()
        for layer, sae in tiny_sae.layers.items()
        for name, value in (sae.state_dict() | {"dead": tiny_sae.dead[layer].byte()}).items()
    }
    (tmp_path / "sae.safetensors").write_bytes(save(tensors))
    record = tiny_sae.record.model_dump_json()
    (tmp_path / "config.json").write_text(record)
    with pytest.raises(DamagedError, match=message):
        SaeRun.load(with_tensors(tmp_path, change, "sae.safetensors"))


def test_an_sae_of_other_layers_than_its_backbone_is_refused(tiny_sae, tmp_path):
    (tmp_path / "config.json").write_text(tiny_sae.record.model_dump_json())
    with pytest.raises(DamagedError, match="expected the backbone's: 1, 2"):
        SaeRun.load(rewritten(tmp_path, SaeRecord, layers=["1", "9"]))


def test_tokens_of_another_width_are_refused_when_they_are_judged(tiny_store, tiny_sae):
    detector = make_detector(tiny_store, plan_of(tiny_sae))[0]
    swapped = Detector(
        dict(zip("12", reversed(detector.layers.values()), strict=True)), detector.record
    )
    tokens = {key: torch.zeros(1, 5, 12) for key in detector.record.backbone.token_keys[:1]}
    with pytest.raises(SpgError, match=r"the tokens are 12 wide, the guides 8"):
        swapped.probabilities(tokens)


@pytest.mark.parametrize("plan", [plan_of, additive_plan])
def test_tokens_that_are_no_numbers_give_no_scores(
    tiny_store, tiny_manifest, tiny_sae, tmp_path, monkeypatch, plan
):
    monkeypatch.setattr(Checksums, "damaged", lambda *_: None)  # as if they were forged, too
    store = extracted(tiny_manifest, tmp_path / "s.zarr")
    shard = store.path / "tokens_1/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[:2] = np.float16(np.nan).tobytes()
    shard.write_bytes(data)
    detector = make_detector(tiny_store, plan(tiny_sae))[0]
    with pytest.raises(SpgError, match=r"no numbers.*spg-pipe verify"):
        score_store(detector, store, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    assert crc32c(bytes(data))


def test_finite_values_up_to_the_bound_load_and_the_first_beyond_does_not(tmp_path):
    path = tmp_path / "t.safetensors"
    sha256 = save_tensors(path, {"a": torch.tensor([1e9, -1e9, 0.0]), "b": torch.empty(0, 3)})
    assert load_tensors(path, sha256, "thing", "make")["a"].tolist() == [1e9, -1e9, 0.0]
    sha256 = save_tensors(path, {"a": torch.tensor([0.0, 1.1e9])})
    with pytest.raises(DamagedError, match=r"the tensor a has values from 0 to 1\.1e"):
        load_tensors(path, sha256, "thing", "make")


@pytest.mark.parametrize("last", ["write_json", "write_record"])
def test_metrics_on_a_disk_that_fills_up_leave_no_file_and_no_older_one(
    tiny_detector, tiny_store, tmp_path, monkeypatch, last
):
    scores = score_store(tiny_detector, tiny_store, tmp_path / "scores")
    evaluation = evaluate.evaluate_scores(scores, tiny_store, MetricParams())
    evaluation.save(tmp_path / "metrics" / "run.json")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluate, last, full)
    with pytest.raises(OSError, match="No space"):
        evaluation.save(tmp_path / "metrics" / "run.json")
    assert [path for path in (tmp_path / "metrics").rglob("*") if path.is_file()] == []

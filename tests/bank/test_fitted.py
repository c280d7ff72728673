"""A bank in a folder is the bank that was fitted, or it is refused (docs/own-goods.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    TinyBackbone,
    additive_plan,
    bank_of_store,
    extracted,
    files,
    manifest_of,
    write_folder,
)

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.bank.fitted import FittedBank, GoodImages, fit_bank
from spg_pipe.bank.fusion import footing, judge_fused
from spg_pipe.bank.normal_patches import Tokens, tokens_of_store
from spg_pipe.bank.record import BankRecord, beside
from spg_pipe.decision.kept import Kept
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import BankParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens

SEEN = TinyBackbone().spec
PARAMS = BankParams(weight=0.5, top_share=0.05)


@pytest.fixture(scope="module")
def detector(tiny_store: FeatureStore, tiny_sae: SaeRun) -> Detector:
    """With a decision of some weight: labels say nothing of its images' own."""
    detector = make_detector(tiny_store, additive_plan(tiny_sae))[0]
    terms = {
        name: term.model_copy(update={"weight": 1.0})
        for name, term in detector.decision.terms.items()
    }
    decision = detector.decision.model_copy(update={"terms": terms})
    rule = detector.record.rule.model_copy(update={"decision": decision})
    record = detector.record.model_copy(update={"rule": rule})
    return replace(detector, record=record)


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    root = tmp_path_factory.mktemp("normals")
    folder = write_folder(root / "parts", ("bolt",), good=6, masked=0, missing=0, seed=7)
    return extracted(manifest_of(folder), root / "x.zarr")


def goods_of(store: FeatureStore, rows: list[int]) -> GoodImages:
    files = [(f"{row}.png", str(row)) for row in rows]
    return GoodImages(tokens_of_store(store, np.array(rows)), files, None)


def fitted(detector: Detector, store: FeatureStore, rows: list[int]) -> FittedBank:
    return fit_bank(goods_of(store, rows), detector, SEEN, PARAMS)


@pytest.fixture(scope="module")
def bank(detector: Detector, normals: FeatureStore) -> FittedBank:
    return fitted(detector, normals, [0, 1, 2, 3, 4, 5])


def tokens_of(store: FeatureStore, rows: list[int]) -> Tokens:
    return {layer: image_tokens(store, layer, np.array(rows)) for layer in store.layers}


def test_a_goods_score_is_that_of_a_bank_and_a_weight_of_the_others(bank, detector, normals):
    for image, good in enumerate(bank.record.goods):
        rows = np.delete(np.arange(6), image)
        others = tokens_of_store(normals, rows)
        memory = bank_of_store(normals, rows, PARAMS)
        says = footing(detector, memory, others, SEEN, batch=4)
        tokens = tokens_of(normals, [image])
        distances = memory.distances(tokens)
        fused = judge_fused(detector, distances, tokens, SEEN, [says]).columns["score"]
        assert good.alone == pytest.approx(float(distances.top[0]), abs=1e-4)
        assert good.fused == pytest.approx(float(fused[0]), abs=1e-4)


def test_an_image_is_shown_beside_the_goods(bank, detector, tiny_store):
    for alone in (False, True):
        columns = bank.judge(tokens_of(tiny_store, [0, 5]), detector, SEEN, alone=alone).columns
        goods = np.array([good.alone if alone else good.fused for good in bank.record.goods])
        deviation = (columns["score"] - goods.mean()) / goods.std(ddof=1)
        np.testing.assert_allclose(columns["deviation"], deviation)
        above = [(goods >= score).sum() for score in columns["score"]]
        assert columns["normals_above"].tolist() == above


def test_goods_with_at_least_a_score_are_counted_and_equal_ones_are_no_division_by_0():
    goods = np.array([1.0, 2.0, 2.0, 3.0])
    columns = beside(goods, np.array([2.0, 3.5, -1.0]))
    assert columns["normals_above"].tolist() == [3, 0, 4]
    assert columns["deviation"][0] == 0
    assert np.isfinite(beside(np.ones(3), np.array([2.0]))["deviation"]).all()
    assert beside(goods[:1], goods) == {}


def test_one_good_and_its_copies_make_a_bank_without_scores_of_its_own(detector, normals):
    bank = fitted(detector, normals, [3, 3, 3])
    (good,) = bank.record.goods
    assert (good.path, good.alone, good.fused, bank.record.copies) == ("3.png", None, None, 2)
    columns = bank.judge(tokens_of(normals, [0]), detector, SEEN, alone=False).columns
    assert not {"deviation", "normals_above"} & set(columns)


def test_copies_change_no_score(detector, normals):
    once, twice = (fitted(detector, normals, rows) for rows in ([0, 1, 2], [0, 0, 1, 2, 1]))
    for one, other in zip(once.record.goods, twice.record.goods, strict=True):
        assert (one.path, one.sha256) == (other.path, other.sha256)
        assert one.alone == pytest.approx(other.alone, abs=1e-5)
        assert one.fused == pytest.approx(other.fused, abs=1e-5)


def test_a_bank_without_the_additive_rule_judges_alone(tiny_detector, normals):
    bank = fitted(tiny_detector, normals, [0, 1, 2])
    assert bank.record.footing is None
    assert all(good.fused is None and good.alone is not None for good in bank.record.goods)
    assert bank.record.supervision == "few-shot: 3 normal images of the target"


@pytest.mark.parametrize("rows", [[0], [0, 1], [0, 1, 2, 3]])
def test_what_is_ignored_of_the_goods_says_nothing(detector, normals, rows):
    """Of patches that see nothing else: another half below gives the same bank."""
    ignored = np.ones((32, 32), np.float32)
    ignored[16:] = 0

    def bank_with(tokens: dict[str, torch.Tensor]) -> FittedBank:
        grids = {layer: normals.spec.layers[layer].grid for layer in tokens}

        def tokens_of(images: np.ndarray) -> tuple[Tokens, dict[str, tuple[int, int]]]:
            return {layer: each[images] for layer, each in tokens.items()}, grids

        files = [(f"{row}.png", str(row)) for row in rows]
        goods = GoodImages(tokens_of, files, None, lambda images: Kept.of([ignored] * len(images)))
        return fit_bank(goods, detector, SEEN, PARAMS)

    tokens = tokens_of(normals, rows)
    other = {layer: each.clone() for layer, each in tokens.items()}
    for layer, each in other.items():
        height, width = normals.spec.layers[layer].grid
        each[:, 1 + height // 2 * width :] = torch.randn(each[:, 1 + height // 2 * width :].shape)
    one, two = bank_with(tokens).record, bank_with(other).record
    whole = fitted(detector, normals, rows).record
    assert (one.scales, one.tops, one.footing) == (two.scales, two.tops, two.footing)
    assert one.goods == two.goods
    assert whole.scales != one.scales
    assert len(rows) == 1 or whole.goods != one.goods


@pytest.mark.parametrize("alone", [False, True])
def test_what_was_saved_judges_as_before_to_the_bit(bank, detector, tiny_store, tmp_path, alone):
    bank.save(tmp_path / "b")
    again = FittedBank.load(tmp_path / "b")
    assert again.record == bank.record
    tokens = tokens_of(tiny_store, [0, 5, 9])
    before, after = (b.judge(tokens, detector, SEEN, alone=alone) for b in (bank, again))
    for name, values in before.columns.items():
        np.testing.assert_array_equal(values, after.columns[name])
    for layer, patches in before.patches.items():
        assert torch.equal(patches, after.patches[layer])


def test_a_second_bank_replaces_the_first_as_a_whole(bank, detector, normals, tmp_path):
    bank.save(tmp_path / "b")
    other = fitted(detector, normals, [0, 1])
    other.save(tmp_path / "b")
    assert FittedBank.load(tmp_path / "b").record == other.record
    assert sorted(name.name for name in (tmp_path / "b").iterdir()) == [
        "bank.safetensors",
        "config.json",
    ]


def change(folder: Path, edit: Callable[[dict], None]) -> None:
    """Edit the record, as one would who also knows how to seal it."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    edit(content)
    del content["seal"]
    kept = {name: each for name, each in content.items() if name not in BankRecord.BESIDE}
    content["fingerprint"] = fingerprint(kept)
    path.write_text(json.dumps(content))


def change_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "bank.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    digest = file_digests(folder, "bank.safetensors")["bank.safetensors"]
    change(folder, lambda content: content.update(tensors_sha256=digest))


def flip(folder: Path) -> None:
    path = folder / "bank.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (flip, "is damaged"),
    "no tensors": (lambda f: (f / "bank.safetensors").unlink(), "cannot be read"),
    "an edited fact": (
        lambda f: (f / "config.json").write_text(
            (f / "config.json").read_text().replace('"white": null', '"white": 255')
        ),
        "does not give its fingerprint",
    ),
    "NaN": (
        lambda f: change_tensors(f, lambda t: t["tokens.1"].fill_(float("nan"))),
        "values from nan",
    ),
    "long tokens": (lambda f: change_tensors(f, lambda t: t["tokens.1"].mul_(2)), "longer than 1"),
    "integers": (
        lambda f: change_tensors(f, lambda t: t.update({"tokens.2": t["tokens.2"].int()})),
        "int32",
    ),
    "a missing layer": (lambda f: change_tensors(f, lambda t: t.pop("tokens.2")), "layers are 1"),
    "no means": (lambda f: change_tensors(f, lambda t: t.pop("means")), "lacks"),
    "means of fewer images": (
        lambda f: change_tensors(f, lambda t: t.update(means=t["means"][:2].clone())),
        "the means have the shape",
    ),
    "an empty layer": (
        lambda f: change_tensors(f, lambda t: t.update({"tokens.1": t["tokens.1"][:0].clone()})),
        "tokens of shape",
    ),
    "no goods": (lambda f: change(f, lambda c: c.update(goods=[])), "goods"),
    "a path above": (lambda f: change(f, lambda c: c["goods"][0].update(path="../x")), "outside"),
    "half the scores": (
        lambda f: change(f, lambda c: c["goods"][0].update(alone=None)),
        "some have a score",
    ),
    "a deviation of 0": (
        lambda f: change(f, lambda c: c["scales"].update({"1": [0.0, 0.0]})),
        "scales",
    ),
    "another format": (lambda f: change(f, lambda c: c.update(format=2)), "another version"),
    "a detector": (lambda f: change(f, lambda c: c.update(kind="detector")), "of a detector"),
    "an unknown key": (lambda f: change(f, lambda c: c.update(more=1)), "more"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_is_not_what_was_written_is_refused_with_a_message(bank, tmp_path, how):
    spoil, message = TAMPERED[how]
    bank.save(tmp_path / "b")
    spoil(tmp_path / "b")
    with pytest.raises(SpgError, match=message):
        FittedBank.load(tmp_path / "b")


def test_grids_that_are_not_those_of_the_images_are_refused(bank, detector, tiny_store, tmp_path):
    bank.save(tmp_path / "b")
    change(tmp_path / "b", lambda content: content["grids"].update({"1": [2, 2]}))
    changed = FittedBank.load(tmp_path / "b")
    said = "16 patches of width 12 in layer 1, and the bank is of images with 2×2 of 12"
    with pytest.raises(SpgError, match=said):
        changed.judge(tokens_of(tiny_store, [0]), detector, SEEN, alone=False)


def test_tokens_of_another_width_are_refused(bank, detector, tiny_store, tmp_path):
    bank.save(tmp_path / "b")
    change_tensors(
        tmp_path / "b", lambda t: t.update({"tokens.2": t["tokens.2"][:, :0].contiguous()})
    )
    changed = FittedBank.load(tmp_path / "b")
    with pytest.raises(SpgError, match="with 2×2 of 0"):
        changed.judge(tokens_of(tiny_store, [0]), detector, SEEN, alone=False)


def test_another_detector_is_refused_unless_the_bank_judges_alone(bank, tiny_detector):
    with pytest.raises(SpgError, match="beside another detector"):
        bank.require_serving(tiny_detector, SEEN, alone=False)
    bank.require_serving(tiny_detector, SEEN, alone=True)


def test_images_that_are_seen_otherwise_are_refused(bank, detector):
    other = SEEN.model_copy(update={"norm": "pre"})
    with pytest.raises(SpgError, match="norm differ"):
        bank.require_serving(detector, other, alone=True)


def test_a_bank_that_cannot_be_written_leaves_nothing(bank, tmp_path, monkeypatch):
    bank.save(tmp_path / "b")
    before = files(tmp_path)
    monkeypatch.setattr("spg_pipe.bank.fitted.write_record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bank.save(tmp_path / "b")
    assert files(tmp_path) == before
    shutil.rmtree(tmp_path / "b")

"""The deployable: what it holds, what it gives, what it refuses (docs/method.md §3, §4)."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    GUIDES,
    METHOD,
    SAE,
    SPEC,
    TinyBackbone,
    additive_plan,
    codes_of,
    extracted,
    files,
    keyed,
    manifest_of,
    plan_of,
    vectors_of,
    write_folder,
)

from spg_pipe.artefacts.files import fingerprint
from spg_pipe.backbones.spec import TokenKey
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import score_store
from spg_pipe.errors import SpgError
from spg_pipe.guides.kinds import ContrastGuides
from spg_pipe.guides.layer import LayerGuides
from spg_pipe.guides.model import effective_codes, initial_codes
from spg_pipe.recipe.params import MethodParams, ScoreParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens


def tokens_of(store: FeatureStore, images: list[int]) -> dict[str, torch.Tensor]:
    return {layer: image_tokens(store, layer, np.array(images)) for layer in store.layers}


def test_probabilities_are_the_formulas(tiny_store: FeatureStore, tiny_detector: Detector) -> None:
    tokens = tokens_of(tiny_store, [0, 4, 9])
    patches, cls = tiny_detector.probabilities(keyed(tokens))
    means = []
    for layer, x in tokens.items():
        guides = tiny_detector.layers[layer]
        similarity = torch.cosine_similarity(x[:, :, None], vectors_of(guides), dim=-1)
        local = torch.softmax(similarity[:, 1:, 2:] / 0.07, dim=-1)[..., 1]
        torch.testing.assert_close(patches[TokenKey(layer)].flatten(1), local, atol=2e-6, rtol=0)
        means.append(torch.softmax(similarity[:, 0, :2] / 0.07, dim=-1)[:, 1])
    expected = torch.stack(means).mean(dim=0).double()
    torch.testing.assert_close(cls, expected, atol=2e-6, rtol=0)
    assert [tuple(p.shape) for p in patches.values()] == [(3, 4, 4), (3, 2, 2)]


def test_mean_tokens_give_each_image_its_own_score(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    method = MethodParams(detection="mean_tokens")
    detector, _ = make_detector(tiny_store, plan_of(tiny_sae, method=method))
    together = detector.probabilities(keyed(tokens_of(tiny_store, [0, 4, 9])))[1]
    alone = [detector.probabilities(keyed(tokens_of(tiny_store, [i])))[1] for i in (0, 4, 9)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)
    assert len(set(together.tolist())) == 3


def test_another_grid_than_in_training_is_scored(tiny_detector: Detector) -> None:
    tokens = {"1": torch.randn(2, 1 + 6, 12), "2": torch.randn(2, 1 + 15, 8)}
    patches, _ = tiny_detector.probabilities(keyed(tokens), keyed({"1": (2, 3), "2": (5, 3)}))
    assert [tuple(p.shape) for p in patches.values()] == [(2, 2, 3), (2, 5, 3)]


def test_save_and_load_give_the_same_detector(tiny_detector: Detector, tmp_path: Path) -> None:
    tiny_detector.save(tmp_path / "d", "epoch,total\n1,2\n")
    loaded = Detector.load(tmp_path / "d")
    assert loaded.record == tiny_detector.record
    for layer, guides in tiny_detector.layers.items():
        again = loaded.layers[layer]
        assert list(again.pairs) == list(guides.pairs) == ["cls", "patches"]
        for part in (vectors_of, codes_of, attrgetter("atom_ids"), attrgetter("atoms")):
            assert part(again).equal(part(guides))
        assert again.grid == guides.grid
    assert (tmp_path / "d/curve.csv").read_text() == "epoch,total\n1,2\n"
    assert set(files(tmp_path / "d")) == {"detector.safetensors", "config.json", "curve.csv"}


def test_two_makings_are_the_same_bytes_and_of_another_seed_other_guides(
    tiny_store: FeatureStore, tiny_sae: SaeRun, tiny_detector: Detector, tmp_path: Path
) -> None:
    again, other = (make_detector(tiny_store, plan_of(tiny_sae, seed)) for seed in (111, 112))
    tiny_detector.save(tmp_path / "a")
    again[0].save(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert again[1] != other[1]
    for layer, guides in tiny_detector.layers.items():
        assert not vectors_of(guides).equal(vectors_of(other[0].layers[layer]))


def test_scoring_needs_neither_sae_nor_auxiliary_store(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    auxiliary = extracted(manifest_of(write_folder(tmp_path / "aux", seed=5)), tmp_path / "a.zarr")
    run, quality, curve = train_sae(auxiliary, SAE, METHOD, seed=1)
    run.save(tmp_path / "sae", quality, curve)
    loaded = SaeRun.load(tmp_path / "sae")
    make_detector(auxiliary, plan_of(loaded))[0].save(tmp_path / "detector")
    for path in ("sae", "a.zarr", "aux"):
        shutil.rmtree(tmp_path / path)
    scores = score_store(Detector.load(tmp_path / "detector"), tiny_store, tmp_path / "scores")
    assert len(scores.table) == 16


def test_it_carries_the_licences_and_what_it_was_made_from(
    tiny_store: FeatureStore, tiny_sae: SaeRun, tiny_detector: Detector
) -> None:
    record = tiny_detector.record
    assert record.licences == ("parts: CC0", "tiny weights: CC0")
    assert (record.store, record.backbone) == (tiny_store.fingerprint, SPEC)
    assert record.sae.fingerprint == tiny_sae.record.fingerprint
    assert record.sae.tokens_seen == {"1": 768, "2": 192}
    assert record.protocol.name == "default"
    assert "torch" in record.versions


def test_the_fingerprint_follows_the_settings_and_not_the_versions(
    tiny_store: FeatureStore, tiny_sae: SaeRun, tiny_detector: Detector
) -> None:
    def of(seed: int = 111, **changes: Any) -> str:
        return make_detector(tiny_store, plan_of(tiny_sae, seed, **changes))[0].fingerprint

    assert of() == tiny_detector.fingerprint
    others = [
        of(guides=GUIDES.model_copy(update={"epochs": 2})),
        of(guides=ContrastGuides(atoms=6)),
        of(method=METHOD.model_copy(update={"protocol": "spg"})),
        of(score=ScoreParams(rule="published", image_score="cls")),
        of(score=ScoreParams(rule="additive")),
        of(seed=112),
    ]
    assert len({tiny_detector.fingerprint, *others}) == 7


@pytest.mark.parametrize(
    ("plan", "guides", "rule"),
    [
        (additive_plan, {"kind", "atoms"}, {"rule", "weights", "cross_fitted", "decision"}),
        (plan_of, {"kind", "epochs", "top_k", "order_seed"}, {"rule", "image_score"}),
    ],
)
def test_a_figure_that_a_kind_does_not_have_is_not_there(
    tiny_store: FeatureStore, tiny_sae: SaeRun, plan: Any, guides: set[str], rule: set[str]
) -> None:
    record = make_detector(tiny_store, plan(tiny_sae))[0].record.model_dump()
    assert (set(record["guides"]), set(record["rule"])) == (guides, rule)


def test_another_backbone_is_refused_with_every_difference(tiny_detector: Detector) -> None:
    preprocess = replace(SPEC.preprocess, size=64)
    changes = {"model": "giant", "norm": "pre", "layers": ("2",), "preprocess": preprocess}
    with pytest.raises(SpgError) as error:
        tiny_detector.check_backbone(SPEC.model_copy(update=changes), "The store x.zarr")
    message = str(error.value)
    assert message.startswith("The store x.zarr was made with another backbone")
    assert "model: the detector has 'tiny_model', The store x.zarr has 'giant'" in message
    assert set(re.findall(r"(\w+): the detector has", message)) == set(changes)
    with pytest.raises(SpgError, match="precision: the detector has 'float32', it has 'bfloat16'"):
        tiny_detector.check_backbone(SPEC.model_copy(update={"precision": "bfloat16"}), "it")


def test_a_label_or_an_alias_makes_no_other_backbone(tiny_detector: Detector) -> None:
    labels = {"alias": "small", "weights": "file: copy.safetensors", "licence": "asked"}
    same = SPEC.model_copy(update=labels)
    tiny_detector.check_backbone(same, "The store")


def test_a_store_of_another_backbone_is_not_scored(
    tiny_images: Path, tiny_detector: Detector, tmp_path: Path
) -> None:
    other = TinyBackbone(norm="pre")
    store = extracted(manifest_of(tiny_images), tmp_path / "a.zarr", backbone=other)
    with pytest.raises(SpgError, match="norm: the detector has 'post'"):
        score_store(tiny_detector, store, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def edited(place: Path, change: Callable[[Any], object], *, sealed: bool = True) -> None:
    """Change config.json; sealed: with the fingerprint of the new content."""
    config = json.loads((place / "config.json").read_text())
    change(config)
    if sealed:
        beside = ("fingerprint", "versions", "tensors_sha256")
        content = {key: value for key, value in config.items() if key not in beside}
        config["fingerprint"] = fingerprint(content)
    (place / "config.json").write_text(json.dumps(config))


WEIGHTS = "detector.safetensors"
DAMAGES = {
    "does not exist": shutil.rmtree,
    "is not a whole detector": lambda place: (place / WEIGHTS).unlink(),
    "is not a whole detector:": lambda place: os.truncate(place / WEIGHTS, 500),
    "is not a whole detector.*9": lambda place: edited(
        place, lambda config: config["layers"].update({"9": [1, 1]})
    ),
    "not a whole detector: protocol.exif_of_own_images": lambda place: edited(
        place, lambda config: config["protocol"].pop("exif_of_own_images")
    ),
    r"is of a scores\. Expected: detector": lambda place: edited(
        place, lambda config: config.update(kind="scores")
    ),
    "does not give its fingerprint, so it was changed or damaged": lambda place: edited(
        place, lambda config: config.update(seed=7), sealed=False
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_what_is_no_whole_detector_is_refused(
    tiny_detector: Detector, tmp_path: Path, message: str
) -> None:
    place = tmp_path / "detector"
    tiny_detector.save(place)
    DAMAGES[message](place)
    with pytest.raises(SpgError, match=message) as error:
        Detector.load(place)
    assert str(place) in str(error.value)


def test_only_used_atoms_are_kept() -> None:
    codes = initial_codes(30, 1)
    codes[:, 10:] = -1
    dead = torch.zeros(30, dtype=torch.bool)
    dead[2] = True
    atoms = torch.eye(30)
    guides = LayerGuides.of_codes(codes, ("cls", "patches"), atoms, dead, None, (2, 2))
    assert guides.atom_ids.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert vectors_of(guides).equal(effective_codes(codes, dead) @ atoms)
    lost = LayerGuides.of_codes(-codes.abs(), ("cls", "patches"), atoms, dead, None, (2, 2))
    assert lost.atom_ids.shape == (0,)
    assert not vectors_of(lost).any()


def test_guides_that_lost_every_code_tell_nothing_apart(
    tiny_store: FeatureStore, tiny_detector: Detector
) -> None:
    codes, dead = -torch.ones(4, 20), torch.zeros(20, dtype=torch.bool)
    layers = {
        layer: LayerGuides.of_codes(
            codes,
            ("cls", "patches"),
            torch.eye(20, guides.atoms.shape[1]),
            dead,
            None,
            guides.grid,
        )
        for layer, guides in tiny_detector.layers.items()
    }
    detector = Detector(layers, tiny_detector.record)
    patches, cls = detector.probabilities(keyed(tokens_of(tiny_store, [0, 4])))
    assert all(values.unique().tolist() == [0.5] for values in patches.values())
    assert cls.tolist() == [0.5, 0.5]

"""Training the guides: steps, averages, what is left out, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import (
    GUIDES,
    METHOD,
    SAE,
    codes_of,
    extracted,
    manifest_of,
    plan_of,
    vectors_of,
    write_folder,
)

from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import initial_codes
from spg_pipe.guides.trained import train as train_module
from spg_pipe.guides.trained import trainer as trainer_module
from spg_pipe.guides.trained.losses import PixelTarget
from spg_pipe.guides.trained.trainer import Constants, GuideTrainer
from spg_pipe.recipe.params import MethodParams
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore


def trainer(protocol: str = "default", **changes: Any) -> GuideTrainer:
    generator = torch.Generator().manual_seed(0)
    atoms = F.normalize(torch.randn(20, 6, generator=generator), dim=1)
    dead = torch.zeros(20, dtype=torch.bool)
    dead[3] = True
    return GuideTrainer(
        initial_codes(20, 1),
        atoms,
        dead,
        (3, 3),
        GUIDES,
        MethodParams(protocol=protocol),
        Constants(**changes),
    )


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(2, 12, 12)
    masks[1, 2:7, 3:9] = 1
    return torch.randn(2, 10, 6, generator=generator), torch.tensor([0, 1]), masks


def train(
    store: FeatureStore,
    sae: SaeRun,
    seed: int = 111,
    protocol: str = "default",
    batch_images: int = 4,
    **changes: Any,
) -> tuple[Detector, list[dict[str, float]]]:
    guides, method = GUIDES.model_copy(update=changes), MethodParams(protocol=protocol)
    constants = Constants(batch_images=batch_images)
    return make_detector(
        store, plan_of(sae, seed, guides=guides, method=method, constants=constants)
    )


@pytest.mark.parametrize(
    ("protocol", "decay"), [("default", 0.999), ("default", 0.2), ("spg", 0.999)]
)
def test_the_average_follows_its_rule(protocol: str, decay: float) -> None:
    ours = trainer(protocol, ema_decay=decay)
    assert ours.ema.equal(initial_codes(20, 1))
    for t in range(6):
        before = ours.ema.clone()
        ours.step(ours.batch(*batch(t)))
        share = decay if protocol == "spg" else min(decay, (1 + t) / (10 + t))
        expected = share * before + (1 - share) * ours.codes.detach()
        torch.testing.assert_close(ours.ema, ours.codes.detach() if t == 0 else expected)


def test_steps_lower_the_loss_and_leave_dead_codes_alone() -> None:
    ours = trainer()
    losses = [ours.step(ours.batch(*batch())).total.item() for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    assert ours.codes[:, 3].equal(initial_codes(20, 1)[:, 3])


def test_training_never_runs_the_sae(
    tiny_store: FeatureStore, tiny_sae: SaeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the SAE was run")

    monkeypatch.setattr(SparseAutoencoder, "forward", refuse)
    monkeypatch.setattr(SparseAutoencoder, "code", refuse)
    assert train(tiny_store, tiny_sae)[0].layers


def test_images_without_a_mask_are_left_out_and_counted(
    tiny_store: FeatureStore, tiny_sae: SaeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    true = train_module.image_batches

    def spy(*args: Any, **kwargs: Any) -> Any:
        for one in true(*args, **kwargs):
            seen.extend(one.images.tolist())
            yield one

    monkeypatch.setattr(train_module, "image_batches", spy)
    detector, _ = train(tiny_store, tiny_sae, epochs=2)
    assert sorted(set(seen)) == [i for i in range(16) if i not in (7, 15)]
    assert len(seen) == 2 * 14
    auxiliary = detector.record.auxiliary
    assert (auxiliary.dataset, auxiliary.split) == ("parts", "test")
    assert (auxiliary.images, auxiliary.left_out) == (14, 2)


def test_the_curve_has_a_row_an_epoch_and_the_loss_falls(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    _, curve = train(tiny_store, tiny_sae, epochs=8)
    assert [row["epoch"] for row in curve] == list(range(1, 9))
    assert curve[-1]["total"] < curve[0]["total"]
    for row in curve:
        parts = row["detection"] + row["segmentation"] + row["sparsity"]
        assert row["total"] == pytest.approx(parts, rel=1e-5)
        assert 0 <= row["positive_codes"] <= 1


def test_the_guides_are_made_of_living_atoms(tiny_store: FeatureStore, tiny_sae: SaeRun) -> None:
    detector, _ = train(tiny_store, tiny_sae)
    for layer, guides in detector.layers.items():
        assert not tiny_sae.dead[layer][guides.atom_ids].any()
        torch.testing.assert_close(codes_of(guides) @ guides.atoms, vectors_of(guides))
        assert guides.atoms.equal(tiny_sae.layers[layer].atoms.detach()[guides.atom_ids])
        assert guides.grid == tiny_store.spec.layers[layer].grid


@pytest.mark.parametrize(("protocol", "changed"), [("spg", True), ("default", False)])
def test_a_last_batch_of_one_image_has_its_quirk_in_spg_only(
    tiny_store: FeatureStore,
    tiny_sae: SaeRun,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    changed: bool,
) -> None:
    rows: list[bool] = []
    true = trainer_module.segmentation_loss

    def spy(logits: torch.Tensor, target: PixelTarget) -> Any:
        rows.append(target.by_row)
        return true(logits, target)

    monkeypatch.setattr(trainer_module, "segmentation_loss", spy)
    train(tiny_store, tiny_sae, protocol=protocol, epochs=1, batch_images=13)
    assert rows == [False, False, changed, changed]  # 13 images, then 1; two layers each


def test_an_sae_of_another_store_is_refused(
    tiny_store: FeatureStore, tiny_sae: SaeRun, tmp_path: Any
) -> None:
    other = extracted(manifest_of(write_folder(tmp_path / "parts", seed=9)), tmp_path / "a.zarr")
    with pytest.raises(SpgError, match=r"another store.*spg-pipe train-sae"):
        train(other, tiny_sae)


@pytest.mark.parametrize(
    ("masked", "message"),
    [
        (0, "no anomalous image with a mask"),
        (2, r"none of the 2 anomalous images with a mask has an anomalous pixel at 32×32"),
    ],
)
def test_a_store_without_an_anomalous_pixel_is_refused(
    tmp_path: Any, masked: int, message: str
) -> None:
    root = write_folder(tmp_path / "parts", categories=("bolt",), masked=masked, missing=1)
    for path in root.glob("bolt/ground_truth/dent/*"):
        Image.fromarray(np.zeros((40, 48), np.uint8)).save(path)
    store = extracted(manifest_of(root), tmp_path / "a.zarr")
    sae = train_sae(store, SAE.model_copy(update={"epochs": 1}), METHOD, seed=1)[0]
    with pytest.raises(SpgError, match=message):
        train(store, sae)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_loss_that_is_not_finite_stops_at_once_with_its_place_and_advice(
    tiny_store: FeatureStore, tiny_sae: SaeRun, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    true = torch.nn.functional.cross_entropy
    calls: list[int] = []

    def spoiled(similarity: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)  # two layers a step, four steps an epoch
        return true(similarity, labels) * (float("nan") if len(calls) == 12 else 1)

    monkeypatch.setattr(trainer_module.F, "cross_entropy", spoiled)
    monkeypatch.setattr(
        train_module.Training,
        "_every",
        property(lambda _: every, lambda *_: None),
        raising=False,
    )
    message = r"not finite in epoch 2, step 6 \(layer 2, seed 111\)\. Check the tokens"
    with pytest.raises(SpgError, match=message):
        train(tiny_store, tiny_sae)
    assert len(calls) <= 16  # no longer than the epoch

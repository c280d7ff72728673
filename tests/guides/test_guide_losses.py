"""Guide codes, cosines and losses, each against its formula (docs/method.md §3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.reference.guides import dice, focal, literal_losses
from spg_pipe.guides import model
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.trained.losses import PixelTarget, Region, segmentation_loss
from spg_pipe.guides.trained.trainer import GuideTrainer
from spg_pipe.recipe.params import MethodParams


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def probabilities(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def started(codes: Tensor, width: int = 6, **method: str) -> GuideTrainer:
    """On ten random atoms, all alive, and a grid of 2×2."""
    atoms, dead = random(10, width), torch.zeros(10, dtype=torch.bool)
    guides = TrainedGuides(epochs=1)
    return GuideTrainer(codes, atoms, dead, (2, 2), guides, MethodParams(**method))


@given(
    images=st.integers(1, 4),
    side=st.integers(1, 5),
    zoom=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    normal_only=st.booleans(),
)
def test_all_losses_and_their_gradient_equal_the_literal_ones(
    images: int, side: int, zoom: int, seed: int, normal_only: bool
) -> None:
    size = side * zoom
    # 32 dimensions keep cosines off ±1, where the log of a saturated map multiplies the rounding of
    # float32 interpolation weights, in the literal losses and, by PyTorch's release, in ours.
    tokens = random(images, 1 + side * side, 32, seed=seed)
    atoms = F.normalize(random(10, 32, seed=seed + 1), dim=1)
    codes = 0.1 + 0.1 * random(4, 10, seed=seed + 2)
    dead = probabilities(10, seed=seed + 3) < 0.3
    labels = (probabilities(images, seed=seed + 4) < (0 if normal_only else 0.5)).long()
    masks = (probabilities(images, size, size, seed=seed + 5) < 0.3) * labels[:, None, None]
    # Protocol default: a batch of one image is no exception.
    trainer = GuideTrainer(
        codes, atoms, dead, (side, side), TrainedGuides(epochs=1), MethodParams()
    )
    ours = trainer.losses(trainer.batch(tokens, labels, masks.float()))
    leaf = codes.clone().requires_grad_()
    literal = literal_losses(leaf, dead, atoms, tokens, labels, masks.float(), (side, side))
    for mine, theirs in zip(ours, (sum(literal), *literal), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=2e-6)
    gradient = torch.autograd.grad(sum(literal), leaf)[0]
    tolerance = 1e-5 * max(1.0, float(gradient.abs().max()))
    mine = torch.autograd.grad(ours.total, trainer.codes)[0]
    torch.testing.assert_close(mine, gradient, atol=tolerance, rtol=0)


def test_initial_codes_are_near_a_tenth_and_of_their_seed() -> None:
    codes = model.initial_codes(4000, seed=1)
    assert codes.shape == (4, 4000)
    assert codes.mean().item() == pytest.approx(0.1, abs=1e-3)
    assert codes.std().item() == pytest.approx(0.01, rel=0.05)
    assert codes.equal(model.initial_codes(4000, seed=1))
    assert not codes.equal(model.initial_codes(4000, seed=2))


def test_effective_codes_are_positive_and_never_dead() -> None:
    codes = torch.tensor([[0.5, -0.5, 0.2, 0.1]]).expand(4, 4).clone().requires_grad_()
    dead = torch.tensor([False, False, True, False])
    effective = model.effective_codes(codes, dead)
    torch.testing.assert_close(effective[0], torch.tensor([0.5, 0.0, 0.0, 0.1]))
    effective.sum().backward()
    assert codes.grad is not None
    assert codes.grad[0].tolist() == [1.0, 0.0, 0.0, 1.0]  # pruning by ReLU is one-way


@given(latents=st.integers(1, 20), k=st.integers(1, 25), seed=st.integers(0, 2**31))
def test_top_k_keeps_the_largest_and_lets_every_gradient_through(
    latents: int, k: int, seed: int
) -> None:
    codes = random(4, latents, seed=seed).requires_grad_()
    dead = probabilities(latents, seed=seed + 1) < 0.3
    plain = model.effective_codes(codes, dead).detach()
    hard = model.effective_codes(codes, dead, top_k=k)
    for row, full in zip(hard.detach(), plain, strict=True):
        kept = min(k, latents)
        torch.testing.assert_close(row.sum(), full.topk(kept).values.sum())
        assert int((row > 0).sum()) <= kept
        assert ((row == 0) | torch.isclose(row, full)).all()
    hard.sum().backward()
    assert codes.grad is not None
    assert codes.grad.equal(((codes > 0) & ~dead).float())


def test_top_k_replaces_the_l1_term() -> None:
    trainer = started(model.initial_codes(10, 1))
    trainer.top_k = 3
    batch = trainer.batch(random(2, 5, 6), torch.tensor([0, 1]), torch.zeros(2, 8, 8))
    assert float(trainer.losses(batch).sparsity) == 0


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_cosines_are_pytorchs(seed: int, scale: float) -> None:
    tokens, guides = scale * random(2, 5, 7, seed=seed), random(3, 7, seed=seed + 1)
    expected = F.cosine_similarity(tokens[:, :, None], guides, dim=-1)
    torch.testing.assert_close(model.cosines(tokens, guides), expected, atol=1e-6, rtol=0)


def test_products_with_tokens_have_the_gradient_of_a_product() -> None:
    tokens, guides = random(3, 5, 7).double(), random(2, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda g: model.TokenProducts.apply(tokens, g), guides)
    torch.testing.assert_close(model.TokenProducts.apply(tokens, guides), tokens @ guides.t())


def test_guides_of_zeros_have_cosine_zero_and_a_finite_gradient() -> None:
    guides = torch.zeros(2, 4, requires_grad=True)
    similarity = model.cosines(torch.ones(1, 3, 4), guides)
    assert not similarity.any()
    similarity.sum().backward()
    assert guides.grad is not None
    assert torch.isfinite(guides.grad).all()
    ours = started(-torch.ones(4, 10))
    batch = ours.batch(random(2, 5, 6), torch.tensor([0, 1]), torch.zeros(2, 8, 8))
    assert all(part.isfinite() for part in ours.step(batch))
    assert ours.codes.isfinite().all()


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 4), (28, 28)])
@pytest.mark.parametrize("size", [(28, 28), (15, 40), (9, 3)])
def test_upsampling_is_pytorchs_bilinear(grid: tuple[int, int], size: tuple[int, int]) -> None:
    values = probabilities(2, *grid)
    expected = F.interpolate(values[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(model.upsample(values, size), expected, atol=1e-6, rtol=0)
    square = F.interpolate(values[:, None], (11, 11), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(model.upsample(values, 11), square, atol=1e-6, rtol=0)


def test_upsampling_in_inference_mode_does_not_spoil_later_training() -> None:
    values = probabilities(1, 5, 6)
    with torch.inference_mode():
        model.upsample(values, 33)
    leaf = values.clone().requires_grad_()
    model.upsample(leaf, 33).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.sum(), torch.tensor(33.0 * 33.0))


def test_patches_are_row_major() -> None:
    grid = model.to_grid(torch.arange(6.0)[None], (2, 3))
    assert grid.tolist() == [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]


@pytest.mark.parametrize(("protocol", "same"), [("spg", True), ("default", False)])
def test_the_protocol_decides_whose_mean_token_is_used(protocol: str, same: bool) -> None:
    codes = model.initial_codes(10, 1)
    trainer = started(codes, 4, protocol=protocol, detection="mean_tokens")
    tokens, labels, masks = random(2, 5, 4), torch.tensor([0, 1]), torch.zeros(2, 8, 8)
    before = trainer.losses(trainer.batch(tokens, labels, masks)).detection
    tokens[1] *= -1
    after = trainer.losses(trainer.batch(tokens, labels, masks)).detection
    assert after.equal(before) == same


def pixels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Both upsampled probabilities, (B, 2, H, W): normal, anomaly."""
    maps = torch.softmax(torch.stack([torch.zeros_like(logits), logits], 1), 1)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    share=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)
def test_focal_and_dice_have_the_values_and_gradients_of_their_formulas(
    seed: int, images: int, grid: tuple[int, int], size: tuple[int, int], share: float
) -> None:
    mask = (probabilities(images, *size, seed=seed + 1) < share).double()
    mask[0, :, : size[1] // 2] = 0  # a defect in a corner
    ours, theirs = (random(images, *grid, seed=seed).double().requires_grad_() for _ in range(2))
    found = segmentation_loss(ours, PixelTarget.of(mask, grid))
    maps = pixels(theirs, size)
    expected = (focal(maps, mask), dice(maps[:, 1], mask), dice(maps[:, 0], 1 - mask))
    # Interpolation weights are float32 in both, sums of them 1 within its rounding.
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=1e-6)
        gradients = [
            torch.autograd.grad(value, leaf, retain_graph=True)[0]
            for value, leaf in ((mine, ours), (wanted, theirs))
        ]
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.total, sum(found))


def test_the_whole_batch_at_once_gives_what_image_by_image_does() -> None:
    # As on a GPU, where no rectangle around the defects is looked for.
    mask = torch.zeros(3, 9, 12)
    mask[1, 2:6, 3:8] = 1
    target = PixelTarget.of(mask, (3, 4))
    whole = slice(None)
    one = replace(target, regions=(Region(whole, whole, whole, mask > 0, 1 - 2 * mask),))
    first, second = (random(3, 3, 4).requires_grad_() for _ in range(2))
    for logits, way in ((first, target), (second, one)):
        segmentation_loss(logits, way).total.backward()
    torch.testing.assert_close(first.grad, second.grad)


def test_dice_by_row_is_the_quirk_of_a_single_image_and_spg_only() -> None:
    logits, mask = random(1, 3, 2), (probabilities(1, 6, 5, seed=1) < 0.4).float()
    p = pixels(logits, (6, 5))[:, 1]
    rows = dice(p[0][:, None], mask[0][:, None])
    quirk = segmentation_loss(logits, PixelTarget.of(mask, (3, 2), single_image_by_row=True))
    torch.testing.assert_close(quirk.dice_anomaly, rows)
    plain = segmentation_loss(logits, PixelTarget.of(mask, (3, 2)))
    torch.testing.assert_close(plain.dice_anomaly, dice(p, mask))
    masks = PixelTarget.of(mask.repeat(2, 1, 1), (3, 2), single_image_by_row=True)
    both = segmentation_loss(logits.repeat(2, 1, 1), masks)
    torch.testing.assert_close(both.total, plain.total)


@pytest.mark.parametrize("certain", [-300.0, 300.0])
def test_a_certain_map_has_finite_losses_and_gradients(certain: float) -> None:
    logits = torch.full((1, 2, 2), certain, requires_grad=True)
    for mask in (torch.zeros(1, 4, 4), torch.ones(1, 4, 4)):
        loss = segmentation_loss(logits, PixelTarget.of(mask, (2, 2))).total
        gradient = torch.autograd.grad(loss, logits)[0]
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("width", [6, 16])
def test_saturated_patches_lose_no_accuracy_in_float32(width: int) -> None:
    # Few dimensions make cosines of ±1: probabilities down to 1e-12, where 1 − p would be 0.
    for seed in range(10):
        tokens = random(2, 17, width, seed=seed)
        atoms = F.normalize(random(12, width, seed=seed + 1), dim=1)
        codes = 0.1 + 0.1 * random(4, 12, seed=seed + 2)
        dead, labels = torch.zeros(12, dtype=torch.bool), torch.tensor([0, 1])
        masks = torch.zeros(2, 32, 32)
        masks[1, 5:20, 8:17] = 1
        trainer = GuideTrainer(codes, atoms, dead, (4, 4), TrainedGuides(epochs=1), MethodParams())
        ours = trainer.losses(trainer.batch(tokens, labels, masks))
        leaf = codes.double().requires_grad_()
        exact = literal_losses(
            leaf, dead, atoms.double(), tokens.double(), labels, masks.double(), (4, 4)
        )
        gradient = torch.autograd.grad(sum(exact), leaf)[0]
        mine = torch.autograd.grad(ours.total, trainer.codes)[0].double()
        assert abs(ours.segmentation.item() - exact.segmentation.item()) < 2e-6 * 4
        assert float((mine - gradient).abs().max()) < 2e-6 * max(1, float(gradient.abs().max()))

"""The same code on a CUDA device gives the CPU's numbers. Run by `make test-gpu`."""

import pytest
import torch

from spg_pipe.backbones import load_backbone
from spg_pipe.backbones.precision import computed_by, has_bfloat16, with_precision
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.model import initial_codes
from spg_pipe.guides.trained.trainer import GuideTrainer
from spg_pipe.recipe.params import MethodParams
from spg_pipe.sae import sparse
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.trainer import SaeTrainer, StepConstants

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="did not run: there is no CUDA device here"
    ),
]


@pytest.mark.parametrize("dense_entries", [0, 2**22])
def test_sae_steps_agree_with_the_cpu(dense_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ENTRIES", dense_entries)  # 0: the closed form
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    constants = StepConstants(auxk=16, dead_after=600)
    results = {}
    for device in ("cpu", "cuda"):
        sae = SparseAutoencoder(64, 256, 8)
        sae.encoder.data[::2] *= 1e-2  # dead from the second step on
        trainer = SaeTrainer(sae.to(device), "tokens", constants)
        for _ in range(5):
            losses, dead = trainer.step(x.to(device))
        assert bool(dead.any())
        results[device] = (float(losses.total.detach()), sae.dictionary.detach().cpu())
    assert results["cuda"][0] == pytest.approx(results["cpu"][0], rel=1e-4)
    torch.testing.assert_close(results["cuda"][1], results["cpu"][1], atol=1e-3, rtol=0)


def test_a_trainer_goes_on_from_its_state_with_the_same_bits() -> None:
    batches = torch.randn(6, 512, 64, generator=torch.Generator().manual_seed(0)).cuda()
    whole, first, second = (
        SaeTrainer(SparseAutoencoder(64, 256, 8).cuda(), "tokens", StepConstants())
        for _ in range(3)
    )
    for x in batches:
        whole.step(x)
    for x in batches[:3]:
        first.step(x)
    second.restore({name: value.cpu().clone() for name, value in first.state().items()})
    for x in batches[3:]:
        second.step(x)
    assert second.sae.dictionary.equal(whole.sae.dictionary)


def test_guide_steps_agree_with_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 37, 32, generator=generator)
    labels = torch.tensor([0, 1, 0, 1])
    masks = (torch.rand(4, 48, 48, generator=generator) > 0.9).float()
    sae = SparseAutoencoder(32, 64, 4)
    results = {}
    for device in ("cpu", "cuda"):
        trainer = GuideTrainer(
            initial_codes(64, 0).to(device),
            sae.atoms.detach().to(device),
            torch.zeros(64, dtype=torch.bool, device=device),
            (6, 6),
            TrainedGuides(epochs=1),
            MethodParams(),
        )
        batch = trainer.batch(tokens.to(device), labels.to(device), masks.to(device))
        for _ in range(5):
            trainer.step(batch)
        results[device] = trainer.ema.cpu()
    torch.testing.assert_close(results["cuda"], results["cpu"], atol=1e-4, rtol=0)


def test_a_backbone_in_bfloat16_is_near_the_cpus_float32() -> None:
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    exact = load_backbone("efficientnet-lite0", image_size=128)(images)
    notes: list[str] = []
    network = load_backbone("efficientnet-lite0", image_size=128, device="cuda")
    half = with_precision(network, "bfloat16", "cuda", notes.append)
    able = has_bfloat16("cuda")
    assert computed_by("bfloat16", "cuda") == (
        "bfloat16 by PyTorch's autocast" if able else "bfloat16, computed in float32"
    )
    assert ["does not help here" in note for note in notes] == ([] if able else [True])
    for layer, tokens in half(images.cuda()).items():
        assert tokens.patches.dtype == torch.float32
        ratio = (tokens.patches.cpu() - exact[layer].patches).norm() / exact[layer].patches.norm()
        assert (1e-4 < ratio < 0.1) if able else ratio < 1e-3
    assert not torch.is_autocast_enabled("cuda")

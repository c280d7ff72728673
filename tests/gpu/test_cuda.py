"""The same code on a CUDA device gives the CPU's numbers. Run by `make test-gpu`."""

import pytest
import torch

from spg_pipe.guides.model import initial_codes
from spg_pipe.guides.trainer import GuideTrainer
from spg_pipe.params import GuideParams, MethodParams, SaeParams
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.trainer import SaeTrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="did not run: there is no CUDA device here"
    ),
]


def test_sae_steps_agree_with_the_cpu() -> None:
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    params = SaeParams(dict_size=256, k=8, dead_after_tokens=600)
    results = {}
    for device in ("cpu", "cuda"):
        sae = SparseAutoencoder(64, 256, 8).to(device)
        trainer = SaeTrainer.start(sae, params, "tokens")
        for _ in range(5):
            losses, _ = trainer.step(x.to(device))
        results[device] = (float(losses.total.detach()), sae.dictionary.detach().cpu())
    assert results["cuda"][0] == pytest.approx(results["cpu"][0], rel=1e-4)
    torch.testing.assert_close(results["cuda"][1], results["cpu"][1], atol=1e-3, rtol=0)


def test_guide_steps_agree_with_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 37, 32, generator=generator)
    labels = torch.tensor([0, 1, 0, 1])
    masks = (torch.rand(4, 48, 48, generator=generator) > 0.9).float()
    sae = SparseAutoencoder(32, 64, 4)
    results = {}
    for device in ("cpu", "cuda"):
        trainer = GuideTrainer.start(
            initial_codes(64, 0).to(device),
            sae.atoms.detach().to(device),
            torch.zeros(64, dtype=torch.bool, device=device),
            (6, 6),
            GuideParams(),
            MethodParams(),
        )
        batch = trainer.batch(tokens.to(device), labels.to(device), masks.to(device))
        for _ in range(5):
            trainer.step(batch)
        results[device] = trainer.result.cpu()
    torch.testing.assert_close(results["cuda"], results["cpu"], atol=1e-4, rtol=0)

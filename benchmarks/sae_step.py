"""One SAE training step: sparse (the project's) against dense (docs/method.md §2, literally).

Both run in this process in turn; the ratio is of medians. `python -m benchmarks.sae_step`
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from spg_pipe.params import SaeParams
from spg_pipe.sae.model import SparseAutoencoder, normalised_rows
from spg_pipe.sae.trainer import BETAS, SaeTrainer

SHAPES = ((384, 2048, 32, 4096), (1024, 4096, 32, 2048))
"""(D, C, k, tokens a batch)."""
ROUNDS = 5


def dense_step(
    encoder: torch.Tensor, dictionary: torch.Tensor, optimizer: torch.optim.Optimizer, k: int
) -> Callable[[torch.Tensor], None]:
    """The baseline: a zero-filled code times the whole dictionary, gradients by autograd."""

    def step(x: torch.Tensor) -> None:
        pre = x @ encoder.t()
        values, indices = pre.topk(k, dim=1)
        z = torch.zeros_like(pre).scatter(1, indices, values.clamp_min(0))
        loss = (z @ normalised_rows(dictionary) - x).pow(2).mean(dim=1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            dictionary.copy_(F.normalize(dictionary, dim=1, eps=1e-8))

    return step


def measure(dim: int, dict_size: int, k: int, tokens: int) -> tuple[float, float]:
    """Median seconds of the sparse and of the dense step, interleaved."""
    sae = SparseAutoencoder(dim, dict_size, k)
    trainer = SaeTrainer.start(sae, SaeParams(dict_size=dict_size, k=k), "tokens")
    twin = SparseAutoencoder(dim, dict_size, k)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3, betas=BETAS, fused=True)
    dense = dense_step(twin.encoder, twin.dictionary, optimizer, k)
    x = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {"sparse": [], "dense": []}
    for round_ in range(ROUNDS + 1):
        for name, step in (("sparse", trainer.step), ("dense", dense)):
            start = time.perf_counter()
            step(x)
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return statistics.median(seconds["sparse"]), statistics.median(seconds["dense"])


def main() -> None:
    """Print a table."""
    print(f"SAE step, float32, {torch.get_num_threads()} threads; baseline: dense step")
    print("    D     C   k  tokens  sparse s  dense s  ratio")
    for dim, dict_size, k, tokens in SHAPES:
        sparse, dense = measure(dim, dict_size, k, tokens)
        print(
            f"{dim:5} {dict_size:5} {k:3} {tokens:7} {sparse:9.3f} {dense:8.3f} "
            f"{dense / sparse:5.2f}×"
        )


if __name__ == "__main__":
    main()

"""One SAE training step: forward, backward, Adam; the project's against the reference recipe.

    python -m benchmarks.sae_step [--rounds 5] [--quick]

Both run in this process in turn, on the same tokens and weights; the ratio is of medians. Beside
it the largest difference of the gradients, ‖Δ‖∞/‖g‖∞. *AuxK*: with a share of dead
latents, which nobody knows beforehand. The last line is one JSON object with the ratios.
"""

import argparse
import json
from dataclasses import dataclass

import torch

from benchmarks.reference.sae import DenseSae, rows
from benchmarks.timing import machine, medians
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.trainer import SaeTrainer, StepConstants

DEAD_AFTER = 10_000_000


@dataclass(frozen=True)
class Shape:
    """A step's size."""

    dim: int = 1024
    dict_size: int = 4096
    k: int = 32
    tokens: int = 8192
    dead_share: float = 0.0


NAMED = {
    "sae_step_fp32": Shape(),
    "sae_step_auxk": Shape(dead_share=1 / 3),
    "sae_step_d384": Shape(dim=384),
}
"""The ratios of the last line. A third of the latents dead is what real tokens showed."""
MORE = (
    Shape(dim=768),
    Shape(dict_size=2048),
    Shape(dict_size=8192),
    Shape(k=8),
    Shape(k=128),
    Shape(tokens=2048),
    Shape(tokens=12544),
    Shape(dead_share=0.1),
    Shape(dead_share=0.5),
    Shape(dead_share=0.9),
    Shape(dim=384, dict_size=2048),
    Shape(dim=320, dict_size=512, k=16),
)
"""The growth with D, C, k, tokens and the share of the dead."""


class Pair:
    """Ours and the reference with the same weights, tokens and dead latents."""

    def __init__(self, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        start = rows(torch.randn(shape.dict_size, shape.dim, generator=generator))
        self.x = torch.randn(1, shape.tokens, shape.dim, generator=generator)
        self.dead = torch.rand(shape.dict_size, generator=generator) < shape.dead_share
        encoder = torch.where(self.dead[:, None], 1e-2 * start, start)  # never among the k largest
        self.reference = DenseSae(encoder, start, shape.k)
        sae = SparseAutoencoder(shape.dim, shape.dict_size, shape.k)
        sae.encoder.data, sae.dictionary.data = encoder.clone(), start.clone()
        self.ours = SaeTrainer(sae, "steps", StepConstants())

    def _forget(self) -> None:
        """The same latents are dead in every step."""
        age = torch.where(self.dead, DEAD_AFTER, 0)
        self.reference.age = age.clone()
        self.ours.counter.restore(age.clone())

    def step_ours(self) -> None:
        """One step of the project."""
        self._forget()
        self.ours.step(self.x[0])

    def step_reference(self) -> None:
        """One step of the reference recipe."""
        self._forget()
        self.reference.step(self.x)

    def difference(self) -> float:
        """The larger ‖Δ‖∞/‖g‖∞ of the two gradients at the start."""
        self._forget()
        self.ours.losses(self.x[0])[0].total.backward()
        self.reference.loss(self.x)[0].backward()
        sae, found = self.ours.sae, []
        for mine, theirs in (
            (sae.encoder.grad, self.reference.encoder.grad),
            (sae.dictionary.grad, self.reference.dictionary.grad),
        ):
            assert mine is not None
            assert theirs is not None
            found.append(float((mine - theirs).abs().max() / theirs.abs().max()))
        return max(found)


def measure(shape: Shape, rounds: int) -> float:
    """Print a row; the ratio of medians."""
    pair = Pair(shape)
    difference = pair.difference()
    seconds = medians({"ours": pair.step_ours, "reference": pair.step_reference}, rounds)
    ratio = seconds["reference"] / seconds["ours"]
    print(
        f"| {shape.dim} | {shape.dict_size} | {shape.k} | {shape.tokens:,} | "
        f"{shape.dead_share:.0%} | {seconds['ours']:.3f} | {seconds['reference']:.3f} | "
        f"{ratio:.2f}× | {difference:.1e} |",
        flush=True,
    )
    return ratio


def main() -> None:
    """Print the table and the line of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only the shapes of the last line")
    options = parser.parse_args()
    print(json.dumps(run(options.rounds, quick=options.quick)))


def run(rounds: int = 5, *, quick: bool = False) -> dict[str, float]:
    """Print the table; the ratios of the last line."""
    print(f"\nSAE step, {machine()}; medians of {rounds} rounds in turn")
    print("| D | C | k | tokens | dead | ours, s | reference, s | ratio | Δ gradient |")
    print("|---|---|---|---|---|---|---|---|---|")
    ratios = {name: round(measure(shape, rounds), 2) for name, shape in NAMED.items()}
    for shape in () if quick else MORE:
        measure(shape, max(2, rounds // 2))
    return ratios


if __name__ == "__main__":
    main()

"""Guide training: the project's step against the literal recipe (docs/method.md §3).

Both run in this process in turn; ratios are of medians. `python -m benchmarks.guide_step`
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.labelled_store import labelled_store
from benchmarks.reference.guides import LiteralGuides
from benchmarks.timing import machine, medians
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.model import initial_codes, unit
from spg_pipe.guides.trained.train import GuideRun, fit_guides
from spg_pipe.guides.trained.trainer import GuideTrainer
from spg_pipe.recipe.params import MethodParams
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.run import SaeRecord, SaeRun
from spg_pipe.store.stream import image_batches, sources_of

METHOD = MethodParams(protocol="spg")
LATENTS = 32
SEEDS = 6
"""k of the frozen SAE, which the literal recipe runs."""


class Setting(NamedTuple):
    """A batch with everything that a step needs."""

    tokens: Tensor
    labels: Tensor
    masks: Tensor
    codes: Tensor
    atoms: Tensor
    encoder: Tensor
    dead: Tensor
    grid: tuple[int, int]

    def literal(self) -> LiteralGuides:
        """The published recipe at step 0."""
        return LiteralGuides(self.codes, self.encoder, self.atoms, self.dead, LATENTS, self.grid)

    def ours(self, params: TrainedGuides | None = None) -> GuideTrainer:
        """The project's trainer at step 0."""
        return GuideTrainer(
            self.codes, self.atoms, self.dead, self.grid, params or TrainedGuides(epochs=1), METHOD
        )


def setting(
    *,
    dim: int = 1024,
    dict_size: int = 4096,
    side: int = 28,
    size: int = 448,
    images: int = 8,
    seed: int = 0,
) -> Setting:
    """Random tokens; every second image has a rectangular defect, whose tokens share a shift."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(images, 1 + side * side, dim, generator=generator)
    masks = torch.zeros(images, size, size)
    for image in range(1, images, 2):
        top, left = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        masks[image, top : top + size // 5, left : left + size // 4] = 1
    shift = torch.randn(dim, generator=generator)
    defect = F.avg_pool2d(masks[:, None], size // side).flatten(1)
    tokens[:, 1:] += defect[..., None] * shift
    labels = (torch.arange(images) % 2).long()
    atoms = F.normalize(torch.randn(dict_size, dim, generator=generator), dim=1)
    encoder = F.normalize(torch.randn(dict_size, dim, generator=generator), dim=1)
    dead = torch.rand(dict_size, generator=generator) < 0.3
    codes = initial_codes(dict_size, seed)
    return Setting(tokens, labels, masks, codes, atoms, encoder, dead, (side, side))


def difference(steps: int = 5, **given: int) -> tuple[float, float]:
    """Largest differences after some steps: of guide vectors of unit length, and of codes.

    Both of the codes themselves and of their moving average.
    """
    one = setting(**given)
    literal, ours = one.literal(), one.ours()
    batch = ours.batch(one.tokens, one.labels, one.masks)
    for _ in range(steps):
        literal.step(one.tokens, one.labels, one.masks)
        ours.step(batch)
    pairs = [(literal.codes, ours.codes), (literal.ema, ours.ema)]
    vectors, codes = [], []
    for theirs, mine in pairs:
        assert theirs is not None
        codes.append(float((theirs - mine).detach().abs().max()))
        units = [unit((c.relu() * ~one.dead) @ one.atoms) for c in (theirs.detach(), mine.detach())]
        vectors.append(float((units[0] - units[1]).abs().max()))
    return max(vectors), max(codes)


def step_seconds(rounds: int, *, literal: bool = True, **given: int) -> dict[str, float]:
    """Median seconds of a step, the preparation of its batch included."""
    one = setting(**given)
    ours, theirs = one.ours(), one.literal()
    batch = (one.tokens, one.labels, one.masks)
    work: dict[str, Callable[[], object]] = {"ours": lambda: ours.step(ours.batch(*batch))}
    if literal:
        work["literal"] = lambda: theirs.step(*batch)
    return medians(work, rounds)


def training_seconds(
    folder: Path, *, images: int = 64, epochs: int = 3, dim: int = 384, size: int = 336
) -> dict[str, float]:
    """Seconds of a small training from a store: both recipes, and five runs in one pass."""
    store = labelled_store(folder, images=images, dim=dim, size=size)
    layer = store.layers[0]
    sae = SparseAutoencoder(dim, 2048, LATENTS)
    dead = torch.zeros(2048, dtype=torch.bool)
    record = SaeRecord.of(store, None, protocol("default"), 0, {layer: 0})
    saes = SaeRun({layer: sae}, {layer: dead}, record)
    params = TrainedGuides(epochs=epochs, order_seed=111)

    def literal() -> None:
        guides = LiteralGuides(
            initial_codes(2048, 0),
            sae.encoder.detach(),
            sae.atoms.detach(),
            dead,
            LATENTS,
            store.spec.layers[layer].grid,
        )
        for epoch in range(epochs):
            for batch in image_batches(sources_of(store), 8, seed=111, epoch=epoch):
                guides.step(batch.tokens[layer], batch.labels, batch.masks)

    runs = [GuideRun(saes, params, seed) for seed in range(5)]
    return medians(
        {
            "ours": partial(fit_guides, store, runs[:1], METHOD),
            "five in one pass": partial(fit_guides, store, runs, METHOD),
            "literal": literal,
        },
        1,
        warm=0,
    )


def growth() -> None:
    """Print seconds of a step over C and S."""
    print("our step, batch 8, D = 1024:      C     S  patches  seconds")
    for dict_size, size in ((1024, 448), (4096, 448), (8192, 448), (4096, 224), (4096, 672)):
        side = size // 16
        found = step_seconds(7, literal=False, dict_size=dict_size, size=size, side=side)
        print(f"{dict_size:35} {size:5} {side * side:8} {found['ours']:8.4f}")


def measure(rounds: int = 5) -> dict[str, float]:
    """Ratios of the literal recipe's seconds to ours, and the difference after five steps."""
    started = time.perf_counter()
    print(machine())
    step = step_seconds(rounds)
    print(f"step, batch 8, S = 448, D = 1024, C = 4096: {_line(step)}")
    apart = [difference(seed=seed) for seed in range(SEEDS)]
    vectors, codes = (sorted(values) for values in zip(*apart, strict=True))
    print(f"largest difference after 5 steps, {SEEDS} seeds: unit guide vectors", end=" ")
    print(f"{vectors[0]:.1e} to {vectors[-1]:.1e}, codes {codes[0]:.1e} to {codes[-1]:.1e}")
    with tempfile.TemporaryDirectory() as folder:
        training = training_seconds(Path(folder))
    print(f"training, 64 images × 3 epochs, D = 384, S = 336: {_line(training)}")
    growth()
    print(f"measured in {time.perf_counter() - started:.0f} s")
    return {
        "guide_step": step["literal"] / step["ours"],
        "guide_step_difference": vectors[-1],
        "guide_step_codes_difference": codes[-1],
        "guide_training": training["literal"] / training["ours"],
        "guide_five_runs": 5 * training["ours"] / training["five in one pass"],
    }


def _line(seconds: dict[str, float]) -> str:
    ratio = seconds["literal"] / seconds["ours"]
    return ", ".join(f"{name} {value:.4f} s" for name, value in seconds.items()) + f": {ratio:.1f}×"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of the step")
    print(json.dumps(measure(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()

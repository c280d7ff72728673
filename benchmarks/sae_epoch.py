"""An epoch of SAE training from a finished store, and growth.

    python -m benchmarks.sae_epoch [--rounds 3] [--no-growth]

D = 384, 576 patches (a ViT-S at 336 px), C = 2048, k = 32, batches of 16 images, the measuring
pass included. Baseline: the reference recipe on the same batches, with its pass for dead latents.
Growth: each figure is a process of its own (VmHWM). The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.labelled_store import labelled_store
from benchmarks.memory import peak_megabytes
from benchmarks.reference.sae import DenseSae, topk_code
from benchmarks.timing import machine, medians
from spg_pipe.recipe.params import MethodParams, SaeParams
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import ordered_batches, token_batches

DIM, SIZE, IMAGES = 384, 336, 64
PARAMS = SaeParams(dict_size=2048, k=32, epochs=1)
METHOD = MethodParams()


def literal_sae(store: FeatureStore, epochs: int = 1) -> tuple[DenseSae, torch.Tensor]:
    """The reference recipe on the project's own batches; also its dead mask (C,)."""
    layer = store.layers[0]
    source = TokenSource(store, layer)
    start = SparseAutoencoder(source.dim, PARAMS.dict_size, PARAMS.k, 111).encoder.detach()
    dense = DenseSae(start, start, PARAMS.k)
    for epoch in range(epochs):
        for x in token_batches(source, seed=111, epoch=epoch, batch_images=PARAMS.batch_images):
            dense.step(x.float()[None])
    counts = torch.zeros(len(start), dtype=torch.int64)
    with torch.no_grad():
        for _, batch in ordered_batches({layer: source}, 16):
            z = topk_code(batch[layer][:, 1:].flatten(0, 1) @ dense.encoder.t(), PARAMS.k)
            counts += (z > 0).sum(dim=0)
    return dense, counts == 0


def measure(rounds: int = 3) -> dict[str, float]:
    """Print seconds of an epoch; the ratio."""
    print(f"\nSAE epoch, {machine()}; {IMAGES} images × 576 × {DIM}, medians of {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        store = labelled_store(Path(folder), images=IMAGES, dim=DIM, size=SIZE)
        work = {
            "ours": lambda: train_sae(store, PARAMS, METHOD, seed=111),
            "reference": lambda: literal_sae(store),
        }
        seconds = medians(work, rounds)
        print(f"an epoch: ours {seconds['ours']:.2f} s, reference {seconds['reference']:.2f} s")
    return {"sae_epoch": round(seconds["reference"] / seconds["ours"], 2)}


def growth() -> None:
    """Print seconds and peak memory of an epoch over images and C, a process each."""
    print("| images | C | seconds | MiB at the peak |\n|---|---|---|---|")
    for images, latents in ((64, 2048), (256, 2048), (1024, 2048), (64, 1024), (64, 4096)):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.sae_epoch", "--task", folder]
            command += [str(images), str(latents)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        took, peak = (float(value) for value in done.stdout.split())
        print(f"| {images} | {latents} | {took:.2f} | {peak:,.0f} |", flush=True)


def _task(folder: Path, images: int, latents: int) -> None:
    store = labelled_store(folder, images=images, dim=DIM, size=SIZE)
    start = time.perf_counter()
    train_sae(store, PARAMS.model_copy(update={"dict_size": latents}), METHOD, seed=111)
    print(time.perf_counter() - start, peak_megabytes())


def main() -> None:
    """Print the tables and the line of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        folder, images, latents = options.task
        _task(Path(folder), int(images), int(latents))
        return
    ratios = measure(options.rounds)
    if not options.no_growth:
        growth()
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()

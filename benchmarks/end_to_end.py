"""From finished stores to a table of metrics: SAE, guides, scores, metrics.

    python -m benchmarks.end_to_end [--epochs 3 5]

An auxiliary and a target store of random tokens that show their defects (D = 384, 576 patches, 64
images each), C = 2048. Baseline: the reference recipe through all stages, on the same batches. One
round, ours first. The last line is one JSON object: the ratio of seconds, and both pixel AUROCs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.labelled_store import labelled_store
from benchmarks.reference.evaluate import LiteralModel, pixel_metrics
from benchmarks.reference.guides import LiteralGuides
from benchmarks.reference.sae import rows
from benchmarks.sae_epoch import DIM, IMAGES, PARAMS, SIZE, literal_sae
from benchmarks.timing import machine
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.make import DetectorPlan, make_detector
from spg_pipe.detector.scores import score_store
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.model import initial_codes
from spg_pipe.recipe.params import MethodParams, MetricParams, ScoreParams
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_batches, image_tokens, sources_of

METHOD = MethodParams(protocol="spg")
"""As the reference: its dead latents and its moving average."""


def ours(
    auxiliary: FeatureStore, target: FeatureStore, folder: Path, epochs: tuple[int, int]
) -> float:
    """Pixel AUROC of the target; everything is written as the pipeline does."""
    settings = PARAMS.model_copy(update={"epochs": epochs[0]})
    saes = train_sae(auxiliary, settings, METHOD, seed=111).run
    guides = TrainedGuides(epochs=epochs[1])
    plan = DetectorPlan(saes, 111, guides, METHOD, ScoreParams(rule="published"))
    detector, _ = make_detector(auxiliary, plan)
    scores = score_store(detector, target, folder / "scores")
    evaluation = evaluate_scores(scores, target, MetricParams())
    evaluation.save(folder / "metrics.json")
    return evaluation.table.mean.metrics["pixel_auroc"]


def reference(auxiliary: FeatureStore, target: FeatureStore, epochs: tuple[int, int]) -> float:
    """Pixel AUROC of the target by the literal recipe."""
    layer = auxiliary.layers[0]
    sae, dead = literal_sae(auxiliary, epochs[0])
    encoder, dictionary = sae.encoder.detach(), sae.dictionary.detach()
    grid, codes = auxiliary.spec.layers[layer].grid, initial_codes(len(dead), 111)
    guides = LiteralGuides(codes, encoder, rows(dictionary), dead, PARAMS.k, grid)
    for epoch in range(epochs[1]):
        for batch in image_batches(sources_of(auxiliary), 8, seed=111, epoch=epoch):
            guides.step(batch.tokens[layer], batch.labels, batch.masks)
    assert guides.ema is not None
    model = LiteralModel(encoder, dictionary, guides.ema, dead, PARAMS.k)
    images = range(len(target))
    with torch.inference_mode():
        maps = [
            model.image_map(image_tokens(target, layer, np.array([row])), grid, SIZE)
            for row in images
        ]
    return pixel_metrics(np.stack(maps), target.masks(np.arange(len(target))))["auroc"]


def measure(epochs: tuple[int, int] = (3, 5)) -> dict[str, float]:
    """Print seconds and AUROCs of both; the ratio."""
    print(f"\nEnd to end, {machine()}; {epochs[0]} SAE and {epochs[1]} guide epochs, one round")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stores = [
            labelled_store(folder / name, images=IMAGES, dim=DIM, size=SIZE, seed=seed)
            for seed, name in enumerate(("auxiliary", "target"))
        ]
        start = time.perf_counter()
        mine = ours(stores[0], stores[1], folder, epochs)
        between = time.perf_counter()
        theirs = reference(stores[0], stores[1], epochs)
        end = time.perf_counter()
    print(f"ours {between - start:.2f} s, pixel AUROC {mine:.6f}")
    print(f"reference {end - between:.2f} s, pixel AUROC {theirs:.6f}")
    return {
        "end_to_end": round((end - between) / (between - start), 2),
        "end_to_end_auroc_difference": abs(mine - theirs),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, nargs=2, default=(3, 5))
    options = parser.parse_args()
    print(json.dumps(measure(tuple(options.epochs))))


if __name__ == "__main__":
    main()

"""One local direction from normal to anomalous, or several joined by log-sum-exp?

    python -m benchmarks.local_guides AUXILIARY.zarr TARGET.zarr [--images N]

Directions are those of contrast guides before they are matched by atoms: the mean of a cluster of
anomalous unit tokens (k-means) less the mean of the normal ones. Scores are standardised by normal
tokens of the auxiliary set and averaged over layers; nothing else is added. Prints pixel AP and
pixel AUROC of the target for each number of clusters and temperature.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.guides.model import unit
from spg_pipe.metrics import Regions, accumulate
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images

TOKENS = 60
"""Of each class and image, at most."""
VARIANTS = [(1, 0.1), *((count, t) for count in (2, 4, 8) for t in (0.02, 0.1))]
"""Clusters, and temperature of the log-sum-exp."""


def tokens_of(store: FeatureStore, layer: str, rng: np.random.Generator) -> list[Tensor]:
    """Unit tokens (n, D), normal and anomalous: patches without, and with mostly a defect."""
    found: list[list[Tensor]] = [[], []]
    for image in labelled_images(store):
        masks = torch.from_numpy(store.masks(np.array([image]))).float()[:, None]
        share = F.adaptive_avg_pool2d(masks, store.spec.layers[layer].grid).flatten().numpy()
        patches = unit(torch.from_numpy(store.tokens(layer, np.array([image]))[0]).float())
        for kept, chosen in zip(found, (share == 0, share > 0.5), strict=True):
            kept.append(patches[rng.permutation(np.flatnonzero(chosen))[:TOKENS]])
    return [torch.cat(kept) for kept in found]


def directions(normal: Tensor, anomalous: Tensor, count: int) -> Tensor:
    """(count, D) unit differences of means."""
    clusters = MiniBatchKMeans(count, random_state=0, n_init=3).fit(anomalous.numpy())
    return unit(torch.from_numpy(clusters.cluster_centers_).float() - normal.mean(dim=0))


def joined(tokens: Tensor, sides: Tensor, temperature: float) -> Tensor:
    """(n,) log-sum-exp over directions (K, D) of tokens (n, D)."""
    return temperature * torch.logsumexp(tokens @ sides.t() / temperature, dim=1)


def main() -> None:
    """Print a row a variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("auxiliary", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--images", type=int, default=200, help="of the target, drawn once")
    options = parser.parse_args()
    auxiliary, target = FeatureStore(options.auxiliary), FeatureStore(options.target)
    known = np.flatnonzero(target.array("mask_state") != MaskState.MISSING)
    images = np.sort(np.random.default_rng(1).permutation(known)[: options.images])
    taught = {
        layer: tokens_of(auxiliary, layer, np.random.default_rng(0)) for layer in auxiliary.layers
    }
    print(f"{auxiliary.spec.dataset} → {target.spec.dataset}, {len(images)} images")
    print("| directions | temperature | pixel AP | pixel AUROC |\n|---|---|---|---|")
    for count, temperature in VARIANTS:
        sides = {layer: directions(*taught[layer], count) for layer in taught}
        scales = {
            layer: torch.std_mean(joined(taught[layer][0], sides[layer], temperature))
            for layer in taught
        }

        def pairs(
            sides: dict[str, Tensor] = sides,
            scales: dict[str, tuple[Tensor, Tensor]] = scales,
            temperature: float = temperature,
        ) -> Iterator[tuple[np.ndarray, Regions]]:
            for image in images:
                grids = {}
                for layer, side in sides.items():
                    patches = unit(torch.from_numpy(target.tokens(layer, image[None])[0]).float())
                    deviation, mean = scales[layer]
                    values = (joined(patches, side, temperature) - mean) / deviation
                    grids[layer] = values.reshape(1, *target.spec.layers[layer].grid)
                found = anomaly_maps(grids, target.image_size, log_odds=True)[0]
                yield found, Regions.of(target.masks(image[None])[0])

        pixel = accumulate(pairs, "histogram")
        print(f"| {count} | {temperature:g} | {pixel.ap:.3f} | {pixel.auroc:.3f} |", flush=True)


if __name__ == "__main__":
    main()

"""Dictionaries that an SAE's is compared with: would any other vectors explain as much?

Each stands in the place of an SAE: its vectors, of unit length, are both encoder and dictionary, so
that guides are matched, and tokens coded, in the same way by all.
"""

import faiss
import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from spg_pipe.guides.model import unit
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.baselines import both_ways, run_of_vectors

OWN = "trained SAE"
UNTRAINED = "untrained SAE"
RANDOM = "random unit vectors"
MEANS = "k-means centroids"
COMPONENTS = "PCA directions"
AXES = "raw dimensions"
SEEDED = (OWN, UNTRAINED, RANDOM)
DICTIONARIES = (*SEEDED, MEANS, COMPONENTS, AXES)
"""The last three take nothing from the SAE and hardly depend on a seed: they are judged once alone
for all seeds."""
DIRECTION = "the direction itself"
"""In place of a dictionary: what all of them are to match."""
TOKENS = 50_000
"""Patch tokens of a layer that centroids and components are made from, drawn evenly from all
images."""
_ROUNDS = 10
"""Of k-means: more change the centroids hardly at all."""


def dictionary(name: str, store: FeatureStore, saes: SaeRun, seed: int) -> SaeRun:
    """The SAE, or what it is compared with.

    An SAE before its training is random unit vectors with a tied encoder, and so `UNTRAINED` and
    `RANDOM` are two draws of the same: how far they are apart is chance. `name` is
    one of `DICTIONARIES`, `store` the auxiliary set that the SAE was trained on.
    """
    if name == OWN:
        return saes
    rows = {layer: _vectors(name, store, saes, layer, seed) for layer in store.spec.layers}
    return run_of_vectors(rows, {layer: sae.k for layer, sae in saes.layers.items()}, saes.record)


def _vectors(name: str, store: FeatureStore, saes: SaeRun, layer: str, seed: int) -> Tensor:
    """(C', D) unit rows of a dictionary that is compared with the SAE."""
    latents, dim = saes.layers[layer].dictionary.shape
    if name == UNTRAINED:
        return SparseAutoencoder(dim, latents, 1, seed).dictionary.detach()
    if name == RANDOM:
        drawn = np.random.default_rng([seed, [*store.spec.layers].index(layer)])
        return unit(torch.from_numpy(drawn.standard_normal((latents, dim))).float())
    if name == AXES:
        return both_ways(torch.eye(dim))
    tokens = sample_tokens(store, layer, seed)
    if name == MEANS:
        return _centroids(tokens, latents, seed)
    return both_ways(_components(tokens))


def sample_tokens(store: FeatureStore, layer: str, seed: int) -> Tensor:
    """Patch tokens (n, D) float32 of unit length, at most `TOKENS` in all, as many of each image.

    They are drawn without labels.
    """
    rng, shape = np.random.default_rng(seed), store.spec.layers[layer]
    count = max(1, min(shape.patches, TOKENS // len(store)))
    drawn = [
        store.tokens(layer, np.array([image]))[0][rng.permutation(shape.patches)[:count]]
        for image in range(len(store))
    ]
    return unit(torch.from_numpy(np.concatenate(drawn)).float())


def _centroids(tokens: Tensor, count: int, seed: int) -> Tensor:
    """(min(count, n), D) of unit tokens (n, D): spherical k-means."""
    points, count = tokens.numpy(), min(count, len(tokens))
    how = {"niter": _ROUNDS, "seed": seed, "spherical": True, "min_points_per_centroid": 1}
    means = faiss.Kmeans(points.shape[1], count, **how)
    means.train(points)
    return unit(torch.from_numpy(np.array(means.centroids)))


def _components(tokens: Tensor) -> Tensor:
    """(min(D, n), D) principal directions of the centred tokens (n, D), the widest first."""
    return torch.from_numpy(PCA(svd_solver="covariance_eigh").fit(tokens.numpy()).components_)

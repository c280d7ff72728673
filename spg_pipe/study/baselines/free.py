"""Guides without a sparse autoencoder: free dense vectors, in the place of sparse codes.

A dictionary of the axes and their opposites makes any vector out of codes ≥ 0, so that the same
training and scoring run on it.
"""

import torch

from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.run import SaeRecord, SaeRun
from spg_pipe.store.reader import FeatureStore


def free_dictionary(store: FeatureStore) -> SaeRun:
    """±axes for every layer of a store, none of them dead."""
    layers, dead = {}, {}
    for layer, shape in store.spec.layers.items():
        axes = torch.eye(shape.dim)
        sae = SparseAutoencoder(shape.dim, 2 * shape.dim, 1)
        with torch.no_grad():
            sae.dictionary.copy_(torch.cat([axes, -axes]))
        layers[layer], dead[layer] = sae, torch.zeros(2 * shape.dim, dtype=torch.bool)
    record = SaeRecord.of(store, None, protocol("default"), 0, dict.fromkeys(layers, 0))
    return SaeRun(layers, dead, record)

"""Few-shot: normal images of the target as a distribution of patches, instead of a memory bank."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.bank.few_shot import Normals, fingerprint_of, says, seen_of
from spg_pipe.guides.model import unit
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.baselines.patchwise import Method

Fitted = tuple[Tensor, Tensor]
"""Mean (D,) and L/√D (D, D), where L Lᵀ is the inverse covariance."""


def mahalanobis(normals: Normals, target: FeatureStore) -> Method:
    """Distance from the normal patches' distribution, its covariance shrunk (Ledoit and Wolf).

    Parameters
    ----------
    normals : dict of category → NormalImages
        A distribution for each category.
    target : FeatureStore
        What is to be judged.
    """
    names = target.array("category").astype(object)
    fitted = {
        name: {layer: _fit(own.store, own.rows, layer) for layer in target.layers}
        for name, own in normals.items()
    }

    def values(tokens: dict[TokenKey, Tensor], rows: np.ndarray) -> dict[TokenKey, Tensor]:
        return {key: _lengths(batch, names[rows], key.name) for key, batch in tokens.items()}

    def _lengths(batch: Tensor, categories: Sequence[object], layer: str) -> Tensor:
        found = [
            _length(unit(tokens[1:]), *(t.to(batch.device) for t in fitted[str(name)][layer]))
            for tokens, name in zip(batch, categories, strict=True)
        ]
        return torch.stack(found)

    sees = says(seen_of(normals))
    return Method("Mahalanobis", sees, values, inputs={"normals": fingerprint_of(normals)})


def _fit(store: FeatureStore, rows: np.ndarray, layer: str) -> Fitted:
    from sklearn.covariance import LedoitWolf

    tokens = unit(torch.from_numpy(store.tokens(layer, rows)).float())
    found = LedoitWolf().fit(tokens.flatten(0, 1).double().numpy())
    root = np.linalg.cholesky(found.precision_)  # P = L Lᵀ: a distance is the length of x L
    scaled = torch.from_numpy(root / np.sqrt(len(root))).float()
    return torch.from_numpy(found.location_).float(), scaled


def _length(patches: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    return ((patches - mean) @ root).norm(dim=-1)

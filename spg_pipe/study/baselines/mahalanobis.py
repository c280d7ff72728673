"""Few-shot: normal images of the target as a distribution of patches, instead of a memory bank."""

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.bank.few_shot import fingerprint_of, normals_of, says, seen_of
from spg_pipe.guides.model import unit
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.baselines.patchwise import Baseline


def mahalanobis(target: FeatureStore, *normals: FeatureStore) -> Baseline:
    """Distance from the normal patches' distribution, its covariance shrunk (Ledoit and Wolf).

    Parameters
    ----------
    target : FeatureStore
        What is to be judged.
    normals : FeatureStore
        Its normal images: a distribution for each category.
    """
    names, images = target.array("category").astype(object), normals_of(normals, target)
    fitted = {
        name: {layer: _fit(own.store, own.rows, layer) for layer in target.layers}
        for name, own in images.items()
    }

    def values(key: TokenKey, tokens: Tensor, rows: np.ndarray) -> Tensor:
        lengths = []
        for image, name in zip(tokens, names[rows], strict=True):
            mean, root = (part.to(tokens.device) for part in fitted[str(name)][key.name])
            lengths.append(((unit(image[1:]) - mean) @ root).norm(dim=-1))
        return torch.stack(lengths)

    made_from = {"normals": fingerprint_of(images)}
    return Baseline("Mahalanobis", says(seen_of(images)), values, made_from=made_from)


def _fit(store: FeatureStore, rows: np.ndarray, layer: str) -> tuple[Tensor, Tensor]:
    """Mean (D,) and L/√D (D, D), where L Lᵀ is the inverse covariance."""
    from sklearn.covariance import LedoitWolf

    tokens = unit(torch.from_numpy(store.tokens(layer, rows)).float())
    found = LedoitWolf().fit(tokens.flatten(0, 1).double().numpy())
    root = np.linalg.cholesky(found.precision_)  # P = L Lᵀ: a distance is the length of x L
    scaled = torch.from_numpy(root / np.sqrt(len(root))).float()
    return torch.from_numpy(found.location_).float(), scaled

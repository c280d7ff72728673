"""Logistic regression on unit patch tokens of the labelled auxiliary set (scikit-learn)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import unit
from spg_pipe.metrics.tables import seen_in
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images
from spg_pipe.study.baselines.patchwise import Baseline

TOKENS = 20_000
"""Patches of each class that are drawn at most."""


def logistic_regression(store: FeatureStore, seed: int) -> Baseline:
    """Fitted for each layer on a draw of normal patches and of such with a defect.

    The latter count by the defective share of their area.

    Raises
    ------
    SpgError
        If no patch has a defect, or all have.
    """
    from sklearn.linear_model import LogisticRegression

    sides: dict[str, tuple[Tensor, float]] = {}
    for layer in store.layers:
        drawn, shares = _draw(store, layer, seed)
        labels = shares > 0
        model = LogisticRegression(class_weight="balanced", max_iter=200)
        fitted = model.fit(drawn, labels, sample_weight=np.where(labels, shares, 1))
        side = torch.from_numpy(fitted.coef_[0].astype(np.float32))
        sides[layer] = side, float(fitted.intercept_[0])

    def values(key: TokenKey, tokens: Tensor, _rows: np.ndarray) -> Tensor:
        side, bias = sides[key.layer]
        return unit(tokens[:, 1:]) @ side.to(tokens.device) + bias

    return Baseline(
        "logistic regression",
        seen_in(store.synthetic),
        values,
        store.spec.dataset,
        seed,
        {"auxiliary": store.fingerprint},
    )


def _draw(store: FeatureStore, layer: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit tokens (n, D) and defective shares (n,), at most `TOKENS` with and without a defect."""
    rng, images = np.random.default_rng(seed), labelled_images(store)
    grid, parts = store.spec.layers[layer].grid, []
    for start in range(0, len(images), 64):
        masks = torch.from_numpy(store.masks(images[start : start + 64])).float()[:, None]
        parts.append(F.adaptive_avg_pool2d(masks, grid).flatten(1).numpy())
    share = np.concatenate(parts)
    classes = [np.argwhere(share == 0), np.argwhere(share > 0)]
    if not all(len(places) for places in classes):
        raise SpgError(
            f"{store.path}: the patches of layer {layer} all have a defect, or none has, so there "
            "is nothing to tell apart. Use another auxiliary set."
        )
    values, shares = [], []
    for found in classes:
        places = found[rng.permutation(len(found))[:TOKENS]]
        for row in np.unique(places[:, 0]):
            patches = places[places[:, 0] == row, 1]
            tokens = torch.from_numpy(store.tokens(layer, images[row : row + 1])[0][patches])
            values.append(unit(tokens.float()).numpy())
            shares.append(share[row, patches])
    return np.concatenate(values), np.concatenate(shares)

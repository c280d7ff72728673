"""Other ways to judge the patches of a store.

A baseline is a function that returns `Values`: how anomalous patches are, layer by layer. Maps,
image scores and metrics are then made alike for all (`score_patchwise`). `methods` says which of
them are compared, and what each was allowed to see.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.bank.few_shot import normals_of
from spg_pipe.decision.model import coarse_maps, top_mean
from spg_pipe.detector.judge import Judged
from spg_pipe.detector.record import ScoresRecord
from spg_pipe.detector.scores import Scores, parts_of, write_scores
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import to_grid, unit
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.run import SaeRecord, SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images

TOP_SHARE = 0.05
"""Share of a map, the highest, whose mean is the image score."""
TOKENS = 20_000
"""Patches of each class that logistic regression draws at most."""
MUTUAL_IMAGES = 16
"""Others that each image is compared with, drawn once: cost grows with images × these."""
MUTUAL_SHARE = 0.3
"""Of those, the nearest, whose mean distance counts: the others may be defective, too."""

Values = Callable[[TokenKey, Tensor, np.ndarray], Tensor]
"""Key of a layer, its tokens (B, 1 + N, D), their rows in the store (B,) → (B, N), of any range:
higher is more anomalous."""


def score_patchwise(
    values_of: Values, store: FeatureStore, path: Path, *, device: str = "cpu", **about: object
) -> Scores:
    """Judge every image of a store and write scores/<run>/.

    `about` are fields of `ScoresRecord`: `method`, `supervision`, what else is known of the method.
    """
    licences = tuple(sorted(store.spec.licences))
    record = ScoresRecord.of_store(store, log_odds=True, licences=licences, **about)

    def judge_batch(rows: np.ndarray, tokens: dict[str, Tensor]) -> Judged:
        patches = {}
        with torch.inference_mode():
            for key, batch in store.spec.backbone.keyed(tokens).items():
                values = values_of(key, batch, rows).float().cpu()
                patches[key.name] = to_grid(values, store.spec.layers[key.name].grid)
        tops = top_mean(coarse_maps(patches, store.image_size), TOP_SHARE)
        return Judged(patches, {"score": tops})

    return write_scores(store, path, parts_of(store, judge_batch, device=device), record)


def dissimilarity() -> Values:
    """1 − x·m of unit patch tokens x, m their mean: the decision's component alone.

    It needs no other image.
    """

    def values(_key: TokenKey, tokens: Tensor, _rows: np.ndarray) -> Tensor:
        patches = unit(tokens[:, 1:])
        return 1 - (patches @ patches.mean(dim=1)[:, :, None])[..., 0]

    return values


def logistic_regression(store: FeatureStore, seed: int) -> Values:
    """scikit-learn on unit patch tokens, for each layer: normal patches and such with a defect.

    The latter count by the defective share of their area. An `SpgError` if no patch has a defect,
    or all have.
    """
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

    return values


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
    for places in classes:
        drawn = places[rng.permutation(len(places))[:TOKENS]]
        for row in np.unique(drawn[:, 0]):
            patches = drawn[drawn[:, 0] == row, 1]
            tokens = torch.from_numpy(store.tokens(layer, images[row : row + 1])[0][patches])
            values.append(unit(tokens.float()).numpy())
            shares.append(share[row, patches])
    return np.concatenate(values), np.concatenate(shares)


def mahalanobis(target: FeatureStore, *normals: FeatureStore) -> Values:
    """Distance from the normal patches' distribution, its covariance shrunk (Ledoit and Wolf).

    `normals` are normal images of the target: a distribution for each category.
    """
    names = target.array("category").astype(object)
    fitted = {
        name: {layer: _fit(images.store, images.rows, layer) for layer in target.layers}
        for name, images in normals_of(normals, target).items()
    }

    def values(key: TokenKey, tokens: Tensor, rows: np.ndarray) -> Tensor:
        lengths = []
        for image, name in zip(tokens, names[rows], strict=True):
            mean, root = (part.to(tokens.device) for part in fitted[str(name)][key.name])
            lengths.append(((unit(image[1:]) - mean) @ root).norm(dim=-1))
        return torch.stack(lengths)

    return values


def _fit(store: FeatureStore, rows: np.ndarray, layer: str) -> tuple[Tensor, Tensor]:
    """Mean (D,) and L/√D (D, D), where L Lᵀ is the inverse covariance."""
    tokens = unit(torch.from_numpy(store.tokens(layer, rows)).float())
    fitted = LedoitWolf().fit(tokens.flatten(0, 1).double().numpy())
    root = np.linalg.cholesky(fitted.precision_)  # P = L Lᵀ: a distance is the length of x L
    scaled = torch.from_numpy(root / np.sqrt(len(root))).float()
    return torch.from_numpy(fitted.location_).float(), scaled


def mutual_scoring(store: FeatureStore, seed: int) -> Values:
    """Mean distance of a patch to the nearest patch of each of the nearest other images.

    The images of the target judge each other, without labels (after MuSc, 2024): a patch is
    anomalous if most other images have nothing like it. It sees the whole target set at once, so it
    is not zero-shot, and is named so wherever a number of it stands.
    The seed is that of the draw of reference images.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(store))[: MUTUAL_IMAGES + 1])
    references = {
        layer: unit(torch.from_numpy(store.tokens(layer, drawn)).float()) for layer in store.layers
    }

    def values(key: TokenKey, tokens: Tensor, rows: np.ndarray) -> Tensor:
        each = []
        for image, patches in zip(rows.tolist(), unit(tokens[:, 1:]), strict=True):
            others = np.flatnonzero(drawn != image)[:MUTUAL_IMAGES]
            reference = references[key.name][others].to(tokens.device)
            products = (reference.flatten(0, 1) @ patches.t()).unflatten(0, (len(others), -1))
            nearest = 1 - products.amax(dim=1)
            count = max(1, int(MUTUAL_SHARE * len(others)))
            each.append(nearest.topk(count, dim=0, largest=False)[0].mean(dim=0))
        return torch.stack(each)

    return values


def transductive(store: FeatureStore) -> str:
    """What it was allowed to see."""
    return f"transductive: the target's {len(store)} images, unlabelled ({MUTUAL_IMAGES} at a time)"


def free_dictionary(store: FeatureStore) -> SaeRun:
    """±axes for every layer of a store, in the place of an SAE's atoms.

    They make any vector out of codes ≥ 0, so that training and scoring run on free dense guides.
    """
    axes = {layer: both_ways(torch.eye(shape.dim)) for layer, shape in store.spec.layers.items()}
    record = SaeRecord.of(store, None, protocol("default"), 0, dict.fromkeys(axes, 0))
    return run_of_vectors(axes, dict.fromkeys(axes, 1), record)


def both_ways(rows: Tensor) -> Tensor:
    """Each vector and its opposite: a code has no negative values."""
    return torch.cat([rows, -rows])


def run_of_vectors(rows: Mapping[str, Tensor], k: Mapping[str, int], record: SaeRecord) -> SaeRun:
    """Vectors (C, D) of each layer in the place of an SAE's atoms and encoder, none of them dead.

    `k` is the number of active latents of each layer, at most; the record is that of the run.
    """
    layers = {}
    for layer, vectors in rows.items():
        count, dim = vectors.shape
        layers[layer] = sae = SparseAutoencoder(dim, count, min(k[layer], count))
        with torch.no_grad():
            sae.dictionary.copy_(vectors)
            sae.encoder.copy_(vectors)
    dead = {layer: torch.zeros(len(each), dtype=torch.bool) for layer, each in rows.items()}
    return SaeRun(layers, dead, record)

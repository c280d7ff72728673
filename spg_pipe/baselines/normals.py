"""Few-shot: a few normal images of the target itself, as a memory bank or as a distribution.

Not zero-shot, and named so wherever a number of it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.baselines.patchwise import Method
from spg_pipe.decision.model import MAP_TOP, coarse_maps, top_mean
from spg_pipe.detector import Detector
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import to_grid, unit
from spg_pipe.judging import Judged
from spg_pipe.params import SIGMA
from spg_pipe.scoring import Scores, described, write_scores
from spg_pipe.store.reader import FeatureStore

BANK_WEIGHT = 1.0
"""Weight of the bank's standardised distance beside the guides' log odds."""
BANK_TOP = 0.01
"""Share of the bank's map that judges the image."""


@dataclass(frozen=True)
class NormalBank:
    """Unit patch tokens of normal images, with how far such images lie from each other."""

    index: dict[str, Any]
    """Layer → FAISS index of inner products."""
    scales: dict[str, tuple[float, float]]
    """Layer → mean and deviation of the distances of each normal image's patches to the others'."""
    map_top: float
    """What an image component of normal images is on average."""
    images: int
    store: str
    """Fingerprint of the normal images' store."""

    @classmethod
    def of(cls, store: FeatureStore, sigma: float = SIGMA) -> "NormalBank":
        """From a store of normal images.

        Parameters
        ----------
        sigma : float
            Blur of the maps, pixels at S×S.

        Raises
        ------
        SpgError
            If there are fewer than two images, or one is labelled anomalous.
        """
        require_normals(store)
        index, scales, grids = {}, {}, {}
        for layer in store.layers:
            tokens = unit(torch.from_numpy(store.tokens(layer, np.arange(len(store)))).float())
            index[layer] = _index(tokens.flatten(0, 1))
            others = torch.stack([_to_others(tokens, image) for image in range(len(tokens))])
            scales[layer] = float(others.mean()), max(float(others.std()), 1e-6)
            standard = (others - scales[layer][0]) / scales[layer][1]
            grids[layer] = to_grid(standard, store.spec.layers[layer].grid)
        top = top_mean(coarse_maps(grids, store.image_size, sigma), BANK_TOP)
        return cls(index, scales, float(top.mean()), len(store), store.fingerprint)

    def distances(self, layer: str, tokens: Tensor) -> Tensor:
        """1 − cosine (B, N) of each patch to the nearest of the bank; tokens (B, 1 + N, D)."""
        patches = unit(tokens[:, 1:])
        flat = np.ascontiguousarray(patches.flatten(0, 1).cpu().numpy())
        nearest = self.index[layer].search(flat, 1)[0][:, 0]
        return torch.from_numpy(1 - nearest).reshape(patches.shape[:2])

    def standard(self, layer: str, tokens: Tensor) -> Tensor:
        """Distances in deviations of normal images from each other."""
        mean, deviation = self.scales[layer]
        return (self.distances(layer, tokens) - mean) / deviation

    @property
    def sees(self) -> str:
        """What a method with this bank was allowed to see."""
        return _sees(self.images)


def require_normals(store: FeatureStore) -> None:
    """Refuse a store that no bank can be made of.

    Raises
    ------
    SpgError
        If there are fewer than two images, or one is labelled anomalous.
    """
    if len(store) < 2:
        raise SpgError(
            f"{store.path} has {len(store)} image; a bank needs at least two normal images, to "
            "know how far such images lie from each other."
        )
    if (store.array("label") == 1).any():
        raise SpgError(f"{store.path} has anomalous images; a bank is made of normal ones alone.")


def sees(store: FeatureStore) -> str:
    """What a method with these normal images was allowed to see."""
    return _sees(len(store))


def _sees(images: int) -> str:
    return f"few-shot: {images} normal images of the target"


def nearest_neighbours(bank: NormalBank) -> Method:
    """Distance to the nearest patch of the bank, alone."""

    def values(tokens: dict[str, Tensor], _rows: np.ndarray) -> dict[str, Tensor]:
        return {layer: bank.standard(layer, batch) for layer, batch in tokens.items()}

    return Method("k-NN bank", bank.sees, values, inputs={"normals": bank.store})


def mahalanobis(store: FeatureStore) -> Method:
    """Distance from the normal patches' distribution, its covariance shrunk (Ledoit and Wolf)."""
    from sklearn.covariance import LedoitWolf

    found: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in store.layers:
        tokens = unit(torch.from_numpy(store.tokens(layer, np.arange(len(store)))).float())
        fitted = LedoitWolf().fit(tokens.flatten(0, 1).double().numpy())
        root = np.linalg.cholesky(fitted.precision_)  # P = L Lᵀ: a distance is the length of x L
        found[layer] = (
            torch.from_numpy(fitted.location_).float(),
            torch.from_numpy(root / np.sqrt(len(root))).float(),
        )

    def values(tokens: dict[str, Tensor], _rows: np.ndarray) -> dict[str, Tensor]:
        return {
            layer: _length(unit(batch[:, 1:]), *(t.to(batch.device) for t in found[layer]))
            for layer, batch in tokens.items()
        }

    return Method("Mahalanobis", sees(store), values, inputs={"normals": store.fingerprint})


def judge_fused(
    detector: Detector,
    bank: NormalBank,
    tokens: dict[str, Tensor],
    grids: dict[str, tuple[int, int]],
    size: int,
    sigma: float,
    known: dict[str, Tensor] | None = None,
) -> Judged:
    """The additive decision with the bank as one more component of patches and image.

    `known`: the bank's standardised distances, layer → (B, h, w), if they need not be searched.
    """
    decision = detector.require_decision()
    with torch.inference_mode():
        odds, values = detector.log_odds(tokens, grids)
        banks = known or {
            layer: to_grid(bank.standard(layer, tokens[layer]), grids[layer]) for layer in odds
        }
    patches = {layer: odds[layer].cpu() + BANK_WEIGHT * banks[layer] for layer in odds}
    if MAP_TOP in decision.terms:
        own = {layer: values_.cpu() for layer, values_ in odds.items()}
        values = values | {MAP_TOP: decision.map_top(own, size, sigma)}
    shares = decision.shares(values)
    top = top_mean(coarse_maps(banks, size, sigma), BANK_TOP)
    shares["bank"] = BANK_WEIGHT * (top - bank.map_top)
    total = decision.bias + np.sum(list(shares.values()), axis=0)
    return Judged(patches, {"score": total} | {f"share_{n}": s for n, s in shares.items()})


def score_fused(
    detector: Detector,
    bank: NormalBank,
    store: FeatureStore,
    path: Path,
    *,
    known: Scores | None = None,
    device: str = "cpu",
) -> Scores:
    """Judge every image of a target by `judge_fused` and write scores/<run>/.

    Parameters
    ----------
    known : Scores, optional
        What `nearest_neighbours` of this bank gave on this store, instead of a new search.

    Raises
    ------
    SpgError
        If the detector is of another backbone, or `known` of another bank or store.
    """
    if known and known.config["inputs"] != {"store": store.fingerprint, "normals": bank.store}:
        raise SpgError(f"{known.path} are scores of another store or of other normal images.")
    detector.check_backbone(store.spec.backbone, f"The store {store.path}")
    shapes = {layer: store.spec.layers[layer].grid for layer in detector.layers}
    sigma = detector.score.sigma
    content = described(store) | {
        "layers": list(detector.layers),
        "method": "spg-plus + k-NN bank",
        "sees": bank.sees,
        "score": detector.score.model_dump(mode="json") | {"bank": BANK_WEIGHT},
        "inputs": {
            "store": store.fingerprint,
            "detector": detector.fingerprint,
            "normals": bank.store,
        },
        "detector": {key: detector.config[key] for key in ("auxiliary", "seed", "protocol")},
        "licences": sorted({*detector.config["licences"], *store.licences}),
    }
    done = 0

    def judge_batch(tokens: dict[str, Tensor]) -> Judged:
        nonlocal done
        rows = np.arange(done, done + len(next(iter(tokens.values()))))
        done += len(rows)
        distances = known.patches(rows) if known else None
        return judge_fused(detector, bank, tokens, shapes, store.image_size, sigma, distances)

    return write_scores(store, path, judge_batch, content, device=device)


def _length(patches: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    return ((patches - mean) @ root).norm(dim=-1)


def _index(vectors: Tensor) -> Any:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors.numpy()))
    return index


def _to_others(tokens: Tensor, image: int) -> Tensor:
    """Distances (N,) of an image's patches (n, N, D) to the nearest of all other images."""
    others: Sequence[int] = [other for other in range(len(tokens)) if other != image]
    return 1 - (tokens[image] @ tokens[others].flatten(0, 1).t()).amax(dim=1)

"""Few-shot scores: a memory bank of the target's normal images, alone or added to a detector's.

Not zero-shot: every score, row and file of it says how many normal images it saw (docs/method.md
§9).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artifacts import fingerprint
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.bank.memory import Distances, MemoryBank
from spg_pipe.detector import Detector
from spg_pipe.errors import SpgError
from spg_pipe.judging import Judged, judge
from spg_pipe.params import SIGMA, BankParams, ScoreParams
from spg_pipe.scoring import Scores, described, of_detector, require_decision, write_scores
from spg_pipe.store.reader import FeatureStore

FEW_SHOT = "few-shot"
BANK = "k-NN bank"
KNOWN = "among_normals"
"""Column of scores: the image is one of the bank's own, so that it has no distance to it."""

Progress = Callable[[int, int], None]


Normals = dict[str, tuple[FeatureStore, np.ndarray]]
"""Category → the store of its normal images, and their rows (n,) in it."""


@dataclass(frozen=True)
class Banks:
    """A memory bank for each category of a target."""

    of: dict[str, MemoryBank]
    params: BankParams
    rows: Normals

    @property
    def stores(self) -> tuple[FeatureStore, ...]:
        """All of them, each once."""
        return stores_of(self.rows)

    @property
    def sees(self) -> str:
        """What scores with these banks saw besides what the detector did."""
        return says(len(own) for _, own in self.rows.values())

    @property
    def fingerprint(self) -> str:
        """Of the normal images' tokens."""
        return fingerprint_of(self.rows)


def stores_of(rows: Normals) -> tuple[FeatureStore, ...]:
    """Where normal images are, each store once."""
    return tuple({store.fingerprint: store for store, _ in rows.values()}.values())


def fingerprint_of(rows: Normals) -> str:
    """Of normal images' tokens."""
    found = [store.fingerprint for store in stores_of(rows)]
    return found[0] if len(found) == 1 else fingerprint(found)


def says(images: Any) -> str:
    """How many normal images, a number a category, were seen."""
    counts = list(images)
    if len(counts) == 1:
        return f"{FEW_SHOT}: {counts[0]} normal images of the target"
    each = str(min(counts)) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    return f"{FEW_SHOT}: {each} normal images of each category of the target"


def banks_of(
    stores: Sequence[FeatureStore],
    target: FeatureStore,
    params: BankParams,
    *,
    sigma: float = SIGMA,
    device: str = "cpu",
) -> Banks:
    """A bank for each category of a target, from the images that `normals_of` finds.

    Raises
    ------
    SpgError
        As `normals_of`; or of `MemoryBank.of`.
    """
    rows = normals_of(stores, target)
    found = {
        name: MemoryBank.of_store(store, own, sigma, params, device=device)
        for name, (store, own) in rows.items()
    }
    return Banks(found, params, rows)


def normals_of(stores: Sequence[FeatureStore], target: FeatureStore) -> Normals:
    """The normal images for each category of a target.

    Normal images of one category serve a target of one category, whatever the two are called.

    Raises
    ------
    SpgError
        If the stores are of another backbone than the target's, hold anomalous images, lack a
        category, or have fewer than two images of one.
    """
    rows: Normals = {}
    for store in stores:
        _check(store, target)
        names = store.array("category").astype(object)
        rows |= {str(name): (store, np.flatnonzero(names == name)) for name in np.unique(names)}
    wanted = sorted(map(str, np.unique(target.array("category").astype(object))))
    if len(wanted) == len(rows) == 1:
        rows = {wanted[0]: next(iter(rows.values()))}
    if lacking := [name for name in wanted if name not in rows]:
        raise SpgError(
            f"There are no normal images of {', '.join(lacking)}; the normal images are of "
            f"{', '.join(rows)}. A category is judged by normal images of its own: add them, or "
            "score the categories apart (`spg-pipe extract --categories`)."
        )
    rows = {name: rows[name] for name in wanted}
    for name, (store, own) in rows.items():
        if len(own) < 2:
            raise SpgError(
                f"{store.path} has {len(own)} image of {name}; a bank needs at least two normal "
                "images, to know how far such images lie from each other."
            )
    return rows


def _check(store: FeatureStore, target: FeatureStore) -> None:
    ours, theirs = (one.spec.backbone.to_dict() for one in (target, store))
    labels = ("alias", "weights", "licence")  # the same weights can have several names
    differing = [key for key in ours if key not in labels and ours[key] != theirs.get(key)]
    if differing or store.spec.layers != target.spec.layers:
        raise SpgError(
            f"{store.path} has tokens of another backbone than {target.path} "
            f"({', '.join(differing) or 'layers'} differ). Extract the normal images with the same "
            "backbone, size and layers."
        )
    if anomalous := np.flatnonzero(store.array("label") == 1).tolist():
        first = store.table["path"].iloc[anomalous[0]]
        raise SpgError(
            f"{store.path} has {len(anomalous)} anomalous images (the first: {first}); a bank is "
            "made of normal ones alone. Name a split or a folder of normal images."
        )


def judge_fused(
    detector: Detector,
    found: Distances,
    tokens: dict[str, Tensor],
    seen: BackboneSpec,
    params: ScoreParams,
    weight: float,
) -> Judged:
    """The additive decision with the bank's distance as one more component of patches and image.

    Parameters
    ----------
    found : Distances
        Of the same images.
    tokens, seen, params
        As for `judge`; the rule is additive.
    weight : float
        Of the bank.
    """
    grids = {layer: (v.shape[1], v.shape[2]) for layer, v in found.patches.items()}
    judged = judge(detector, tokens, grids, seen, params)
    patches = {name: own + weight * found.patches[name] for name, own in judged.patches.items()}
    share = weight * found.top
    columns = judged.columns | {"score": judged.columns["score"] + share, "share_bank": share}
    return Judged(patches, columns | {KNOWN: found.known})


def judge_alone(found: Distances) -> Judged:
    """The bank's distance and nothing else."""
    return Judged(found.patches, {"score": found.top, "share_bank": found.top, KNOWN: found.known})


def require_fusible(detector: Detector, score: ScoreParams) -> None:
    """Refuse what a bank cannot be added to.

    Raises
    ------
    SpgError
        If the rule is the published one, or the detector has no additive decision.
    """
    if score.rule != "additive":
        raise SpgError(
            "A bank is one more addend of the additive decision, and the score.rule is "
            f"{score.rule}. Use a detector with score.rule: additive, or the bank alone "
            "(--bank alone)."
        )
    require_decision(detector, score)


def score_few_shot(
    detector: Detector | None,
    banks: Banks,
    store: FeatureStore,
    path: Path,
    *,
    score: ScoreParams | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """Judge every image of a target by the bank of its category and write a scores folder.

    Parameters
    ----------
    detector : Detector, optional
        What the banks are added to; without it they judge alone.
    score : ScoreParams, optional
        Default: what the detector was saved with. The blur is that of the banks in any case.

    Raises
    ------
    SpgError
        If the detector's backbone is not the store's, or it has no additive decision.
    """
    params = score or (detector.score if detector else ScoreParams())
    if detector is not None:
        detector.check_backbone(store.spec.backbone, f"The store {store.path}")
        require_fusible(detector, params)
    names, done = store.array("category").astype(object), 0

    def judge_batch(tokens: dict[str, Tensor]) -> Judged:
        nonlocal done
        rows = np.arange(done, done + len(next(iter(tokens.values()))))
        done = int(rows[-1]) + 1
        found = _distances(banks, names[rows], tokens)
        if detector is None:
            return judge_alone(found)
        seen = store.spec.backbone
        return judge_fused(detector, found, tokens, seen, params, banks.params.weight)

    content = _content(detector, banks, store, params)
    return write_scores(
        store,
        path,
        judge_batch,
        content,
        batch_images=params.batch_images,
        device=device,
        progress=progress,
    )


def _distances(banks: Banks, names: np.ndarray, tokens: dict[str, Tensor]) -> Distances:
    """Of a batch whose images may be of several categories."""
    patches: dict[str, Tensor] = {}
    top, known = np.empty(len(names)), np.empty(len(names), bool)
    for name in dict.fromkeys(names):
        rows = np.flatnonzero(names == name)
        found = banks.of[str(name)].distances({k: v[rows] for k, v in tokens.items()})
        top[rows], known[rows] = found.top, found.known
        for layer, values in found.patches.items():
            all_of = patches.setdefault(layer, values.new_empty((len(names), *values.shape[1:])))
            all_of[torch.from_numpy(rows)] = values
    return Distances(patches, top, known)


def _content(
    detector: Detector | None, banks: Banks, store: FeatureStore, params: ScoreParams
) -> dict[str, Any]:
    """What determined the scores."""
    sigma = next(iter(banks.of.values())).sigma
    licences = {licence for one in (store, *banks.stores) for licence in one.licences}
    content = described(store) | {
        "method": BANK,
        "sees": banks.sees,
        "score": {"rule": "additive", "sigma": sigma},
        "bank": banks.params.model_dump(mode="json"),
        "inputs": {"store": store.fingerprint, "normals": banks.fingerprint},
        "detector": {
            "auxiliary": {"dataset": ""},
            "seed": None,
            "protocol": {"name": "none"},
        },
    }
    if detector is not None:
        licences |= set(detector.config["licences"])
        kind = "spg-plus" if detector.contrast else "trained guides"
        content |= {
            "method": f"{kind} + {BANK}",
            "sees": f"{detector.sees}; {banks.sees}",
            "score": params.model_dump(mode="json"),
            "inputs": content["inputs"] | {"detector": detector.fingerprint},
            "detector": of_detector(detector),
        }
    return content | {"licences": sorted(licences)}

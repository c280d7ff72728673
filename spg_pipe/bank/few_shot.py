"""Few-shot scores: a memory bank of the target's normal images, alone or added to a detector's.

Not zero-shot: every score, row and file of it says how many normal images it saw (docs/method.md
§9).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artefacts.files import fingerprint
from spg_pipe.bank.fusion import Footing, footing, judge_alone, judge_fused, require_fusible
from spg_pipe.bank.memory import Distances, MemoryBank
from spg_pipe.bank.normal_patches import (
    are_among,
    batch_of,
    different_images,
    mean_tokens,
    read_normals,
    require_alike,
    tokens_of_store,
)
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.detector.judge import Judged
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import BankOrigin, ScoresRecord
from spg_pipe.detector.scores import Progress, Scores, parts_of, write_scores
from spg_pipe.errors import SpgError, UnsuitableError, listed
from spg_pipe.recipe.params import BankParams, ScoreParams
from spg_pipe.store.reader import FeatureStore

FEW_SHOT = "few-shot"
BANK = "k-NN bank"


class NormalImages(NamedTuple):
    """Those of one category."""

    store: FeatureStore
    rows: np.ndarray
    """(n,) in the store: different images, of copies the first."""
    copies: int = 0
    """How many copies were left out."""


Normals = dict[str, NormalImages]
"""Category → its normal images."""


@dataclass(frozen=True)
class Banks:
    """A memory bank for each category of a target."""

    of: dict[str, MemoryBank]
    params: BankParams
    rows: Normals

    @property
    def origin(self) -> BankOrigin:
        """What scores say of them."""
        return BankOrigin(params=self.params, normals=fingerprint_of(self.rows))


def fingerprint_of(rows: Normals) -> str:
    """Of normal images' tokens."""
    stores = list(dict.fromkeys(images.store.fingerprint for images in rows.values()))
    return stores[0] if len(stores) == 1 else fingerprint(stores)


def seen_of(rows: Normals) -> list[int]:
    """How many different normal images there are of each category."""
    return [len(images.rows) for images in rows.values()]


def says(images: Iterable[int]) -> str:
    """How many normal images, a number a category, were seen."""
    counts = list(images)
    each = str(min(counts)) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    of_each = " of each category" if len(counts) > 1 else ""
    some = "image" if max(counts) == 1 else "images"
    return f"{FEW_SHOT}: {each} normal {some}{of_each} of the target"


def supervision_of(detector: Detector | None, images: Iterable[int]) -> str:
    """What few-shot scores saw: what the detector did, if there is one, and normal images."""
    return says(images) if detector is None else f"{detector.supervision}; {says(images)}"


def note_of_copies(copies: int, images: int) -> str:
    """What is said if some of the normal images were left out as copies of others."""
    return f"Note: {copies} of the {images} normal images are copies of others, left out."


def note_of_known(paths: Sequence[str], images: int, so: str) -> str:
    """What is said if some of the images to be judged (`paths`) are normal images themselves."""
    return (
        f"Note: {len(paths)} of the {images} images are among the normal ones "
        f"({listed(paths, 3)}): few-shot methods find their own images normal, {so}"
    )


def banks_of(
    stores: Sequence[FeatureStore],
    target: FeatureStore,
    params: BankParams,
    *,
    device: str = "cpu",
) -> Banks:
    """A bank for each category of a target, from the images that `normals_of` finds.

    An `SpgError` as of `normals_of` and `MemoryBank.of`.
    """
    rows = normals_of(stores, target)
    banks = {}
    for name, images in rows.items():
        tokens_of, batch = tokens_of_store(images.store, images.rows), batch_of(images.store)
        read = read_normals(tokens_of, len(images.rows), batch=batch)
        banks[name] = MemoryBank.of(read, tokens_of, target.image_size, params, device=device)
    return Banks(banks, params, rows)


def normals_of(stores: Sequence[FeatureStore], target: FeatureStore) -> Normals:
    """The normal images for each category of a target.

    Normal images of one category serve a target of one category, whatever the two are called.

    Raises
    ------
    UnsuitableError
        If the stores hold anomalous images, have another white than the target, or lack a category.
    SpgError
        If the stores are of another backbone than the target's, or two have the same category.
    """
    found: dict[str, tuple[FeatureStore, np.ndarray]] = {}
    for store in stores:
        _check(store, target)
        names = store.array("category").astype(object)
        for name in map(str, np.unique(names)):
            if name in found:
                raise SpgError(
                    f"{found[name][0].path} and {store.path} both have normal images of {name}. "
                    "Give one of them, or one store with the images of both."
                )
            found[name] = store, np.flatnonzero(names == name)
    wanted = _require_all(target, found)
    if len(wanted) == len(found) == 1:
        found = {wanted[0]: next(iter(found.values()))}
    normals = {}
    for name in wanted:
        store, rows = found[name]
        chosen = different_images(store, rows)
        normals[name] = NormalImages(store, chosen, len(rows) - len(chosen))
    return normals


def require_serving(normals: Manifest, target: FeatureStore) -> None:
    """Refuse normal images of which no bank for a target can be made, before they have tokens.

    An `UnsuitableError` as of `normals_of`, as far as a manifest's columns say.
    """
    require_alike(normals.table, normals.white, normals.root, target)
    _require_all(target, set(normals.table["category"]))


def _require_all(target: FeatureStore, names: Collection[str]) -> list[str]:
    """The categories of a target, which must be among the names, or one as the name is."""
    wanted = sorted(map(str, np.unique(target.array("category").astype(object))))
    lacking = [name for name in wanted if name not in names]
    if lacking and not len(wanted) == len(names) == 1:
        raise UnsuitableError(
            f"There are no normal images of {', '.join(lacking)}; the normal images are of "
            f"{', '.join(sorted(names))}. A category is judged by normal images of its own: add "
            "them, or score the categories apart (`spg-pipe extract --categories`)."
        )
    return wanted


def known_images(normals: Normals, target: FeatureStore) -> np.ndarray:
    """(n,) bool: which images of a target are normal images of their category themselves."""
    names, known = target.array("category").astype(object), np.zeros(len(target), bool)
    for name, images in normals.items():
        rows = np.flatnonzero(names == name)
        known[rows] = are_among(mean_tokens(target, rows), mean_tokens(images.store, images.rows))
    return known


def _check(store: FeatureStore, target: FeatureStore) -> None:
    differing = target.spec.backbone.differing(store.spec.backbone)
    if differing or store.spec.layers != target.spec.layers:
        raise SpgError(
            f"{store.path} has tokens of another backbone than {target.path} "
            f"({', '.join(differing) or 'layers'} differ). Extract the normal images with the same "
            "backbone, size and layers."
        )
    require_alike(store.table, store.spec.white, store.path, target)


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

    An `SpgError` if the detector's backbone is not the store's, or it has no additive decision.

    Parameters
    ----------
    detector : Detector, optional
        What the banks are added to; without it they judge alone.
    score : ScoreParams, optional
        Default: what the detector was made for.
    """
    if detector is not None:
        detector.check_backbone(store.spec.backbone, f"The store {store.path}")
        require_fusible(detector, score)
    names = store.array("category").astype(object)
    footings = _footings(detector, banks) if detector else {}

    def judge_batch(rows: np.ndarray, tokens: dict[str, Tensor]) -> Judged:
        distances = _distances(banks, names[rows], tokens)
        if detector is None:
            return judge_alone(distances)
        of_each = [footings[str(name)] for name in names[rows]]
        return judge_fused(detector, distances, tokens, store.spec.backbone, of_each)

    parts = parts_of(store, judge_batch, device=device, progress=progress)
    return write_scores(store, path, parts, _record(detector, banks, store))


def _footings(detector: Detector, banks: Banks) -> dict[str, Footing]:
    return {
        name: footing(
            detector,
            banks.of[name],
            tokens_of_store(images.store, images.rows),
            images.store.spec.backbone,
            batch=batch_of(images.store),
        )
        for name, images in banks.rows.items()
    }


def _distances(banks: Banks, names: np.ndarray, tokens: dict[str, Tensor]) -> Distances:
    """Of a batch whose images may be of several categories (names)."""
    each = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    parts = [
        banks.of[str(names[rows[0]])].distances({k: v[rows] for k, v in tokens.items()})
        for rows in each
    ]
    back = np.argsort(np.concatenate(each))
    return Distances(
        {k: torch.cat([part.patches[k] for part in parts])[back] for k in parts[0].patches},
        np.concatenate([part.top for part in parts])[back].astype(np.float64),
        np.concatenate([part.known for part in parts])[back],
    )


def _record(detector: Detector | None, banks: Banks, store: FeatureStore) -> ScoresRecord:
    stores = (store, *(images.store for images in banks.rows.values()))
    licences = {licence for each in stores for licence in each.spec.licences}
    judged: dict[str, object] = {"method": BANK}
    if detector is not None:
        licences |= set(detector.record.licences)
        judged = {
            "method": f"{'spg-plus' if detector.contrast else 'trained guides'} + {BANK}",
            "seed": detector.record.seed,
            "auxiliary": detector.record.auxiliary.dataset,
            "detector": detector.record.origin,
            "rule": detector.record.rule,
        }
    return ScoresRecord.of_store(
        store,
        supervision=supervision_of(detector, seen_of(banks.rows)),
        log_odds=True,
        bank=banks.origin,
        licences=tuple(sorted(licences)),
        **judged,
    )

"""A bank that was fitted once: its tokens, what it says of its own goods, and its folder.

The folder holds `bank.safetensors` (layer → unit tokens; mean tokens of the goods) and
`config.json`. A bank that is made on the fly is the same, to the bit, without a folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artefacts.checkpoint import below
from spg_pipe.artefacts.digests import load_tensors, save_tensors
from spg_pipe.artefacts.files import fresh_folder, versions
from spg_pipe.artefacts.reading import reading
from spg_pipe.artefacts.record import read_record, write_record
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.bank.few_shot import says, supervision_of
from spg_pipe.bank.fusion import bank_weight, footing_of, judge_alone, judge_fused
from spg_pipe.bank.leave_one_out import LeftOut, leave_one_out
from spg_pipe.bank.memory import CORESET, MemoryBank
from spg_pipe.bank.normal_patches import (
    BATCH,
    Grids,
    KeptOf,
    Progress,
    Tokens,
    TokensOf,
    all_counts,
    read_normals,
)
from spg_pipe.bank.record import BankRecord, Good, beside
from spg_pipe.bank.search import search_among
from spg_pipe.decision.kept import Kept
from spg_pipe.detector.judge import Judged, judge
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import BankParams

MAKE = "spg-pipe fit --normals"
_CONFIG, _TENSORS = "config.json", "bank.safetensors"
FILES = {_CONFIG, _TENSORS}
"""Names in a bank's folder."""
_MEANS = "means"
_UNIT = 1.001
"""Length of a token, at most."""
_MOST_BYTES = 4 * 1024**3
"""Of a bank's tensors: ten layers of 10,000 tokens of 10,000 numbers."""


class GoodImages(NamedTuple):
    """Normal images as a bank is fitted to them."""

    tokens_of: TokensOf
    """By their numbers."""
    files: Sequence[tuple[str, str]]
    """Path and SHA-256 of each, copies included."""
    white: int | None
    """What they were read with."""
    kept_of: KeptOf = all_counts
    fit: str = "squash"
    """How they were made square."""
    ignored: str | None = None
    """Digest of the masks of what does not count."""


@dataclass(frozen=True)
class FittedBank:
    """A bank beside a detector."""

    memory: MemoryBank
    record: BankRecord

    def judge(
        self,
        tokens: Tokens,
        detector: Detector,
        seen: BackboneSpec,
        *,
        alone: bool,
        kept: Kept | None = None,
    ) -> Judged:
        """Judge images by the bank, alone or with the detector, and beside the bank's own goods.

        An `SpgError` if the tokens have another grid or width than the bank's.

        Parameters
        ----------
        tokens, seen, kept
            As for `detector.judge.judge`.
        """
        for layer, (h, w) in self.record.grids.items():
            patches, width = tokens[layer].shape[1] - 1, self.memory.kept[layer].shape[1]
            if (patches, tokens[layer].shape[2]) != (h * w, width):
                raise SpgError(
                    f"An image has {patches} patches of width {tokens[layer].shape[2]} in layer "
                    f"{layer}, and the bank is of images with {h}×{w} of {width}. Fit the bank "
                    f"again with `{MAKE}`."
                )
        distances = self.memory.distances(tokens, kept)
        if alone or self.record.footing is None:
            judged = judge_alone(distances)
        else:
            footings = [self.record.footing] * len(distances.top)
            judged = judge_fused(detector, distances, tokens, seen, footings, kept)
        columns = beside(self.record.scores(alone=alone), judged.columns["score"])
        return replace(judged, columns=judged.columns | columns)

    def supervision(self, *, alone: bool) -> str:
        """What scores saw."""
        return says([self.memory.images]) if alone else self.record.supervision

    def require_serving(self, detector: Detector, seen: BackboneSpec, *, alone: bool) -> None:
        """Refuse, with an `SpgError`, images that are seen otherwise, and another detector."""
        if differing := self.record.backbone.differing(seen):
            raise SpgError(
                f"The bank is of images as {self.record.backbone.seen_at} sees them, and these are "
                f"to be seen by {seen.seen_at} ({', '.join(differing)} differ). Give the options "
                f"that the bank was fitted with, or fit it again with `{MAKE}`."
            )
        ours, theirs = self.record.detector, detector.fingerprint
        if not alone and ours != theirs:
            raise SpgError(
                f"The bank was fitted beside another detector ({ours[:8]}, this one is "
                f"{theirs[:8]}), whose scores its own depend on. Fit it again with `{MAKE}`, or "
                "judge by it alone (--bank alone)."
            )

    def save(self, path: Path) -> None:
        """Write the bank's folder, as a whole or not at all."""
        tensors = {f"tokens.{layer}": kept for layer, kept in self.memory.kept.items()}
        with fresh_folder(path) as folder:
            sha256 = save_tensors(folder / _TENSORS, tensors | {_MEANS: self.memory.means})
            record = self.record.model_copy(update={"tensors_sha256": sha256})
            write_record(folder / _CONFIG, record)

    @classmethod
    def load(cls, path: Path, *, device: str = "cpu") -> "FittedBank":
        """Read a bank's folder; an `SpgError` if it is missing, damaged or of another format."""
        record = read_record(path / _CONFIG, BankRecord, "bank", MAKE)
        digest = record.tensors_sha256
        tensors = load_tensors(path / _TENSORS, digest, "bank", MAKE, most=_MOST_BYTES)
        with reading(path, "bank", MAKE):
            means, kept = tensors.pop(_MEANS), below(tensors, "tokens.")
            record.backbone.require_layers(kept)
            kept = {layer: kept[layer] for layer in record.grids}
            _require_shapes(kept, means, record)
        memory = MemoryBank(
            kept=kept,
            search={layer: search_among(each.to(device), device) for layer, each in kept.items()},
            scales=record.scales,
            tops=np.array(record.tops),
            apart=np.empty(0, np.int64),
            grids=record.grids,
            size=record.backbone.preprocess.size,
            params=record.params,
            means=means,
            copies=record.copies,
        )
        return cls(memory, record.model_copy(update={"tensors_sha256": ""}))


def is_bank(path: Path) -> bool:
    """Whether a folder is a saved bank, whole or not."""
    return (path / _TENSORS).exists()


def _require_shapes(kept: Tokens, means: Tensor, record: BankRecord) -> None:
    """ValueError unless tokens fit each other and the record."""
    for layer, tokens in kept.items():
        count = len(tokens) if tokens.ndim == 2 and tokens.dtype == torch.float32 else 0
        if not record.params.neighbours <= count <= CORESET:
            raise ValueError(
                f"layer {layer} has tokens of shape {tuple(tokens.shape)} and type {tokens.dtype}"
            )
        if float(tokens.norm(dim=1).max()) > _UNIT:
            raise ValueError(f"layer {layer} has tokens longer than 1")
    first = next(iter(kept.values()))
    if means.shape != (len(record.goods), first.shape[1]) or means.dtype != torch.float32:
        raise ValueError(f"the means have the shape {tuple(means.shape)} and type {means.dtype}")


def fit_bank(
    goods: GoodImages,
    detector: Detector,
    seen: BackboneSpec,
    params: BankParams,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FittedBank:
    """A bank of normal images, and what it says of each of them without itself.

    Each image's tokens are computed once; of very many images twice. `seen` says how.
    An `SpgError` as of `MemoryBank.of`.
    """
    guides = _Guides(goods, detector, seen)
    fusible = detector.record.rule.rule == "additive"
    tokens_of = guides.judging if fusible else goods.tokens_of
    batch = max(1, BATCH // seen.inputs_per_image)
    read = read_normals(
        tokens_of, len(goods.files), kept_of=goods.kept_of, batch=batch, progress=progress
    )
    memory = MemoryBank.of(read, goods.tokens_of, seen.preprocess.size, params, device=device)
    left_out = leave_one_out(memory, read, goods.tokens_of, device=device)
    footing, fused = None, list[float]()
    if fusible:
        kept = goods.kept_of(memory.apart)
        footing = footing_of(detector, memory, *guides.of(memory.apart), kept)
        fused = _fused(left_out, detector, params, guides.of(read.images)[1])
    record = BankRecord(
        detector=detector.fingerprint,
        backbone=seen,
        params=params,
        white=goods.white,
        fit=goods.fit,
        ignored=goods.ignored,
        supervision=supervision_of(detector if fusible else None, [memory.images]),
        grids=memory.grids,
        scales=memory.scales,
        tops=tuple(memory.tops.tolist()),
        footing=footing,
        goods=_goods([goods.files[n] for n in read.images.tolist()], left_out, fused),
        copies=memory.copies,
        versions=versions(),
    )
    return FittedBank(memory, record.sealed())


def _goods(
    files: Sequence[tuple[str, str]], alone: Sequence[LeftOut], fused: Sequence[float]
) -> tuple[Good, ...]:
    """Of different images (n,), with their scores, if there are any."""
    return tuple(
        Good(
            path=path,
            sha256=sha256,
            alone=alone[place].top if alone else None,
            fused=fused[place] if fused else None,
        )
        for place, (path, sha256) in enumerate(files)
    )


class _Guides:
    """What the guides say of normal images, judged as their tokens pass by."""

    def __init__(self, goods: GoodImages, detector: Detector, seen: BackboneSpec) -> None:
        self._goods, self._detector, self._seen = goods, detector, seen
        self._odds: dict[int, Tokens] = {}
        self._scores: dict[int, float] = {}

    def judging(self, images: np.ndarray) -> tuple[Tokens, Grids]:
        """As `GoodImages.tokens_of`."""
        (tokens, grids), kept = self._goods.tokens_of(images), self._goods.kept_of(images)
        rule = self._detector.record.rule
        judged = judge(self._detector, tokens, grids, self._seen, rule, kept)
        for place, image in enumerate(images.tolist()):
            self._odds[image] = {k: v[place].clone() for k, v in judged.patches.items()}
            self._scores[image] = float(judged.columns["score"][place])
        return tokens, grids

    def of(self, images: np.ndarray) -> tuple[Tokens, np.ndarray]:
        """Layer → (k, h, w) log odds of the patches of images (k,), and their scores (k,)."""
        numbers = images.tolist()
        layers = self._odds[numbers[0]]
        odds = {name: torch.stack([self._odds[n][name] for n in numbers]) for name in layers}
        return odds, np.array([self._scores[n] for n in numbers])


def _fused(
    left_out: Sequence[LeftOut], detector: Detector, params: BankParams, scores: np.ndarray
) -> list[float]:
    """Of each image (n,), by guides and the bank of the others, with the weight that these give."""
    return [
        float(scores[i] + bank_weight(detector, params, scores[one.others], one.tops) * one.top)
        for i, one in enumerate(left_out)
    ]

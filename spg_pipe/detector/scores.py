"""A detector over a store or over images → Scores (docs/method.md §4, §8).

Scores keep what each layer says of its patches, probabilities or log odds, on their grids in
float32: upsampling and blur are deterministic and are redone by whoever needs a full-size map.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import zarr
from torch import Tensor

from spg_pipe.artefacts.digests import file_digests, require_files
from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.artefacts.reading import reading
from spg_pipe.artefacts.record import read_record, write_record
from spg_pipe.decision.kept import Kept
from spg_pipe.decision.maps import anomaly_maps, finished
from spg_pipe.decision.rules import Additive
from spg_pipe.detector.judge import Judged, Patches, judge
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import ScoresRecord
from spg_pipe.recipe.params import ScoreParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import ordered_batches, sources_of

if TYPE_CHECKING:
    import pandas as pd

BATCH_IMAGES = 8
"""Images that are judged at a time."""
CHUNK_IMAGES = 256
"""Images in a chunk of maps.zarr, whole batches: 0.8 MB at 28×28."""
_WHOLE = 255
"""In `Ignored.shares`: all of the pixel counts."""
_MAKE = "spg-pipe score"

Progress = Callable[[int, int], None]
JudgeBatch = Callable[[np.ndarray, dict[str, Tensor]], Judged]
"""From rows of a store (B,) and their tokens, layer → (B, 1 + N, D) float32, to what is said."""


class Ignored(NamedTuple):
    """What of a target's images does not count."""

    digest: str
    """Of the masks that say so."""
    shares: np.ndarray
    """(m, S, S) uint8: how much each pixel counts, in 255ths."""
    of: np.ndarray
    """(n,) int32: which of the m each image has."""

    def kept(self, images: np.ndarray) -> Kept:
        """Of some images (k,)."""
        return Kept(torch.from_numpy(self.shares[self.of[images]]).float() / _WHOLE)


@dataclass(frozen=True)
class Scores:
    """Scores of one target: a row an image, and what each patch of it was given."""

    path: Path
    table: "pd.DataFrame"
    """path, category, defect, label, mask_state, height, width, and `Judged.columns`."""
    record: ScoresRecord

    def patches(self, images: np.ndarray) -> dict[str, Tensor]:
        """Layer → (n, h, w) float32 values of some images' patches, in any order.

        Only the chunks that hold one of them are read.
        """
        rows, where = np.unique(images, return_inverse=True)
        kind = _kind(self.record.log_odds)
        with reading(self.path / "maps.zarr", "scores", _MAKE):
            group: Any = zarr.open_group(self.path / "maps.zarr", mode="r")
            return {
                layer: torch.from_numpy(np.asarray(group[f"{kind}_{layer}"].oindex[rows])[where])
                for layer in self.record.layers
            }

    def maps(self, images: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Blurred maps (n, S, S), or (n, H, W) for `size`: σ then grows with the map."""
        return self.maps_of(self.patches(images), size, self.kept(images))

    def maps_of(
        self,
        patches: dict[str, Tensor],
        size: tuple[int, int] | None = None,
        kept: Kept | None = None,
    ) -> np.ndarray:
        """`maps` from what `patches` and `kept` gave."""
        odds, side = self.record.log_odds, self.record.image_size
        return anomaly_maps(patches, side, at=size, log_odds=odds, kept=kept)

    def kept(self, images: np.ndarray) -> Kept | None:
        """Which pixels of some images (n,) were judged; None: all."""
        return self._ignored.kept(images) if self._ignored else None

    @cached_property
    def _ignored(self) -> Ignored | None:
        if self.record.ignored is None:
            return None
        with reading(self.path / "maps.zarr", "scores", _MAKE):
            group: Any = zarr.open_group(self.path / "maps.zarr", mode="r")
            arrays = (np.asarray(group[name]) for name in ("kept", "kept_of"))
            ignored, side = Ignored(self.record.ignored, *arrays), self.record.image_size
            masks = len(ignored.shares)
            if ignored.shares.shape != (masks, side, side) or ignored.shares.dtype != np.uint8:
                raise ValueError(f"its masks are no bytes of {side}×{side} pixels")
            of_images = ignored.of.shape == (self.record.images,) and ignored.of.dtype == np.int32
            if not of_images or ignored.of.min() < 0 or ignored.of.max() >= masks:
                raise ValueError(f"not each of its images has one of the {masks} masks")
            return ignored

    def bounds(self, images: np.ndarray) -> tuple[float, float]:
        """Between which all values of some images' maps lie: a map is a mean of its patches."""
        patches = self.patches(images).values()
        ends = torch.stack([torch.stack(values.aminmax()) for values in patches]).double()
        low, high = ends[:, 0].min(), ends[:, 1].max()
        if self.record.log_odds:
            low, high = finished(low), finished(high)
        return float(low), float(high)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read a folder that `score` wrote; an `SpgError` if it is missing or damaged."""
        path = Path(path)  # a library caller may give a string
        record = read_record(path / "config.json", ScoresRecord, "scores", _MAKE)
        require_files(path, record.files_sha256, "scores folder", _MAKE)
        with reading(path / "scores.parquet", "scores", _MAKE):
            import pandas as pd

            table = pd.read_parquet(path / "scores.parquet")
            labels = table[["path", "category", "label", "mask_state"]]
            if len(labels) != record.images or not np.isfinite(table["score"]).all():
                raise ValueError(f"it has no finite score for each of {record.images} images")
        return cls(path, table, record)


def score_store(
    detector: Detector,
    store: FeatureStore,
    path: Path,
    *,
    score: ScoreParams | None = None,
    ignored: Ignored | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    parts: Iterable["Part"] | None = None,
) -> Scores:
    """Score every image of a target store and write scores/<run>/.

    Images stream: what is kept is a row of a few numbers an image and one chunk of grids. An
    `SpgError` if the store was made with another backbone than the detector's, or the rule needs a
    decision that the detector does not have.

    Parameters
    ----------
    score : ScoreParams, optional
        Default: what the detector was saved with.
    ignored : Ignored, optional
        What of the images does not count.
    parts : iterable of Part, optional
        All of them in any order, if they are made elsewhere, by `parts_of` and `judge_of`.
    """
    detector.check_backbone(store.spec.backbone, f"The store {store.path}")
    rule = detector.rule(score)
    kind = detector.record.guides.kind
    record = ScoresRecord.of_store(
        store,
        method=f"{kind} guides, {rule.rule} rule{', a part ignored' if ignored else ''}",
        supervision=detector.supervision,
        log_odds=isinstance(rule, Additive),
        seed=detector.record.seed,
        auxiliary=detector.record.auxiliary.dataset,
        detector=detector.record.origin,
        rule=rule,
        ignored=ignored and ignored.digest,
        licences=tuple(sorted({*detector.record.licences, *store.spec.licences})),
    )
    path = Path(path)  # a library caller may give a string
    if parts is None:
        judge_batch = judge_of(detector, store, score, ignored)
        parts = parts_of(store, judge_batch, device=device, progress=progress)
    return write_scores(store, path, parts, record, ignored)


def judge_of(
    detector: Detector,
    store: FeatureStore,
    score: ScoreParams | None = None,
    ignored: Ignored | None = None,
) -> JudgeBatch:
    """What judges the batches of a store by a detector; parameters as of `score_store`."""
    rule, seen = detector.rule(score), store.spec.backbone
    shapes = {name: shape.grid for name, shape in store.spec.layers.items()}

    def judge_batch(images: np.ndarray, tokens: dict[str, Tensor]) -> Judged:
        kept = ignored.kept(images) if ignored else None
        return judge(detector, tokens, shapes, seen, rule, kept)

    return judge_batch


class Part(NamedTuple):
    """What is said of the images of one chunk: what one process computes by itself."""

    first: int
    """Row of the first image, a multiple of CHUNK_IMAGES."""
    columns: dict[str, np.ndarray]
    """`Judged.columns` (n,)."""
    patches: dict[str, np.ndarray]
    """Layer → (n, h, w) float32."""


def chunks_of(store: FeatureStore) -> list[range]:
    """Rows of each part of a store's scores."""
    ends = range(CHUNK_IMAGES, len(store) + CHUNK_IMAGES, CHUNK_IMAGES)
    return [range(end - CHUNK_IMAGES, min(end, len(store))) for end in ends]


def parts_of(
    store: FeatureStore,
    judge_batch: JudgeBatch,
    rows: range | None = None,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Iterator[Part]:
    """Judge a store part by part, all of it or the `rows` of some chunks.

    Batches do not depend on where it begins: whole batches are a chunk.
    """
    rows = rows or range(len(store))
    columns: list[dict[str, np.ndarray]] = []
    held: list[Patches] = []
    # Every token is used once: there is nothing to keep.
    sources = sources_of(store, device, "none")
    for images, tokens in ordered_batches(sources, BATCH_IMAGES, rows):
        judged = judge_batch(images, tokens)
        columns.append(judged.columns)
        held.append(judged.patches)
        done = int(images[-1]) + 1
        if done % CHUNK_IMAGES == 0 or done == rows.stop:
            joined = _joined(columns)
            patches = {k: torch.cat([each[k] for each in held]).numpy() for k in held[0]}
            yield Part(done - len(joined["score"]), joined, patches)
            columns.clear()
            held.clear()
        if progress:
            progress(done, len(store))


def _joined(columns: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([each[key] for each in columns]) for key in columns[0]}


def write_scores(
    store: FeatureStore,
    path: Path,
    parts: Iterable[Part],
    record: ScoresRecord,
    ignored: Ignored | None = None,
) -> Scores:
    """Write scores/<run>/ from all parts, in any order; each is a chunk, written once.

    `record` has neither its fingerprint nor digests; `ignored` is what the parts did not count.
    """
    columns: dict[int, dict[str, np.ndarray]] = {}
    with fresh_folder(path) as folder:
        arrays = _map_arrays(folder / "maps.zarr", store, record, ignored)
        for part in parts:
            columns[part.first] = part.columns
            for layer, array in arrays.items():
                values = part.patches[layer]
                array[part.first : part.first + len(values)] = values
        table = store.table.assign(**_joined([columns[first] for first in sorted(columns)]))
        table.to_parquet(folder / "scores.parquet", index=False, compression="zstd")
        digests = file_digests(folder, "scores.parquet", "maps.zarr")
        record = record.sealed().model_copy(update={"files_sha256": digests})
        write_record(folder / "config.json", record)
    return Scores(path, table, record)


def _map_arrays(
    path: Path, store: FeatureStore, record: ScoresRecord, ignored: Ignored | None
) -> dict[str, "zarr.Array"]:
    """The arrays of maps.zarr by layer, (n, h, w) float32, still to be filled."""
    group = zarr.create_group(path)
    if ignored:
        chunks = (1, *ignored.shares.shape[1:])
        group.create_array("kept", data=ignored.shares, chunks=chunks)
        group.create_array("kept_of", data=ignored.of)
    arrays = {
        layer: group.create_array(
            f"{_kind(record.log_odds)}_{layer}",
            shape=(len(store), *grid),
            chunks=(min(CHUNK_IMAGES, len(store)), *grid),
            dtype="float32",
            # A lost chunk then reads as NaN, which no metric takes for a score.
            fill_value=np.nan,
            dimension_names=("image", f"row_{layer}", f"column_{layer}"),
        )
        for layer in record.layers
        for grid in [store.spec.layers[layer].grid]
    }
    with warnings.catch_warnings():
        # Zarr v3's consolidated metadata is not yet standardised; readers may ignore it.
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(group.store)
    return arrays


def _kind(log_odds: bool) -> str:
    """What arrays of maps.zarr hold, and their names begin with."""
    return "log_odds" if log_odds else "probability"

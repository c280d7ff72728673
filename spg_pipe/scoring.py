"""A detector over a store or over images → Scores (docs/method.md §4).

Scores keep the per-layer patch probabilities on their grids in float32: upsampling and blur are
deterministic and are redone by whoever needs a full-size map.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artifacts import fingerprint, fresh_folder, versions, write_json
from spg_pipe.detector import Detector
from spg_pipe.digests import FILES, file_digests, read_config, require_files
from spg_pipe.errors import SpgError
from spg_pipe.maps import anomaly_maps
from spg_pipe.params import ScoreParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import ordered_batches, sources_of

if TYPE_CHECKING:
    import pandas as pd

CHUNK_IMAGES = 256
"""Images in a chunk of maps.zarr: 0.8 MB at 28×28."""

Progress = Callable[[int, int], None]


def image_scores(maps: np.ndarray, cls: np.ndarray, params: ScoreParams) -> np.ndarray:
    """One score an image, from its blurred map and its CLS probability.

    Parameters
    ----------
    maps : (B, H, W) float32
    cls : (B,) float32
    params : ScoreParams
        `image_score`: max; cls; top_mean, the mean of the ⌊q·pixels⌋ highest; log_mean_exp,
        b + τ·log(mean(exp((m − b)/τ))) with b the maximum; mix, α·CLS + (1 − α)·max.

    Returns
    -------
    (B,) float32
    """
    flat = maps.reshape(len(maps), -1)
    highest = flat.max(axis=1)
    if params.image_score == "max":
        return highest
    if params.image_score == "cls":
        return cls.astype(np.float32)
    if params.image_score == "top_mean":
        count = max(1, int(params.top_share * flat.shape[1]))
        return np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1)
    if params.image_score == "log_mean_exp":
        spread = np.exp((flat - highest[:, None]) / params.lme_tau).mean(axis=1)
        return (highest + params.lme_tau * np.log(spread)).astype(np.float32)
    return (params.alpha * cls + (1 - params.alpha) * highest).astype(np.float32)


@dataclass(frozen=True)
class Scores:
    """Scores of one target: a row an image, and patch probabilities."""

    path: Path
    table: "pd.DataFrame"
    """path, category, defect, label, mask_state, height, width, score, score_cls, score_map_max."""
    config: dict[str, Any]

    @property
    def size(self) -> int:
        """S: side of the maps, pixels."""
        return int(self.config["image_size"])

    @property
    def sigma(self) -> float:
        """Blur of the maps, pixels at S×S."""
        return float(self.config["score"]["sigma"])

    def patches(self, images: np.ndarray) -> dict[str, Tensor]:
        """Layer → (n, h, w) float32 patch probabilities of some images, in any order.

        Only the chunks that hold one of them are read.
        """
        import zarr

        group: Any = zarr.open_group(self.path / "maps.zarr", mode="r")
        rows, places = np.unique(images, return_inverse=True)
        return {
            layer: torch.from_numpy(np.asarray(group[f"probability_{layer}"].oindex[rows])[places])
            for layer in self.config["layers"]
        }

    def maps(self, images: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Blurred maps (n, S, S), or (n, H, W) for `size`: σ then grows with the map."""
        return anomaly_maps(self.patches(images), self.size, self.sigma, size)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read a folder that `score` wrote.

        Raises
        ------
        SpgError
            If it is missing or damaged.
        """
        import pandas as pd

        path = Path(path)
        config = read_config(path, "scores", "spg-pipe score")
        require_files(path, config, "scores folder", "spg-pipe score")
        try:
            table = pd.read_parquet(path / "scores.parquet")
        except (OSError, ValueError) as error:
            raise SpgError(
                f"{path} is not a whole scores folder ({error}). Run `spg-pipe score` again."
            ) from error
        return cls(path, table, config)


def score_store(
    detector: Detector,
    store: FeatureStore,
    path: Path,
    *,
    score: ScoreParams | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """Score every image of a target store and write scores/<run>/.

    Images stream: what is kept is a row of three numbers an image and one chunk of grids.

    Parameters
    ----------
    score : ScoreParams, optional
        Default: what the detector was saved with.

    Raises
    ------
    SpgError
        If the store was made with another backbone than the detector's.
    """
    detector.check_backbone(store.spec.backbone, f"The store {store.path}")
    params = score or detector.score
    rows: list[dict[str, np.ndarray]] = []
    shapes = {layer: store.spec.layers[layer].grid for layer in detector.layers}
    with fresh_folder(path) as folder:
        maps = MapWriter(folder / "maps.zarr", shapes, len(store))
        # Every token is used once: there is nothing to keep.
        sources = sources_of(store, device, "none")
        for images, tokens in ordered_batches(sources, params.batch_images):
            with torch.inference_mode():
                patches, cls = _probabilities(detector, tokens, shapes)
            rows.append(_rows(patches, cls, store.image_size, params))
            maps.append(patches)
            if progress:
                progress(int(images[-1]) + 1, len(store))
        maps.close()
        table = store.table.assign(
            **{key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        )
        table.to_parquet(folder / "scores.parquet", index=False, compression="zstd")
        config = _config(detector, store, params)
        config[FILES] = file_digests(folder, "scores.parquet", "maps.zarr")
        write_json(folder / "config.json", config)
    return Scores(path, table, config)


def _probabilities(
    detector: Detector, tokens: dict[str, Tensor], shapes: dict[str, tuple[int, int]]
) -> tuple[dict[str, Tensor], np.ndarray]:
    """`Detector.probabilities` on the CPU's memory."""
    patches, cls = detector.probabilities(tokens, shapes)
    return {layer: values.cpu() for layer, values in patches.items()}, cls.cpu().numpy()


def _rows(
    patches: dict[str, Tensor], cls: np.ndarray, size: int, params: ScoreParams
) -> dict[str, np.ndarray]:
    maps = anomaly_maps(patches, size, params.sigma)
    return {
        "score": image_scores(maps, cls, params).astype(np.float32),
        "score_cls": cls.astype(np.float32),
        "score_map_max": maps.reshape(len(maps), -1).max(axis=1),
    }


def _config(detector: Detector, store: FeatureStore, params: ScoreParams) -> dict[str, Any]:
    content = {
        "kind": "scores",
        "format": 1,
        "dataset": store.spec.dataset,
        "split": store.spec.split,
        "images": len(store),
        "image_size": store.image_size,
        "layers": list(detector.layers),
        "score": params.model_dump(mode="json"),
        "inputs": {"detector": detector.fingerprint, "store": store.fingerprint},
        "detector": {
            key: detector.config[key]
            for key in ("auxiliary", "seed", "protocol", "tau", "sae", "guides", "detection")
        },
        "backbone": store.spec.backbone.to_dict(),
        "licences": sorted({*detector.config["licences"], *store.licences}),
    }
    if store.selection:
        content["selection"] = store.selection
    return content | {"fingerprint": fingerprint(content), "versions": versions()}


class MapWriter:
    """Writes maps.zarr, layer by layer (n, h, w) float32, a whole chunk of images at a time."""

    def __init__(self, path: Path, shapes: dict[str, tuple[int, int]], images: int) -> None:
        import zarr

        self._group = zarr.create_group(path)
        self._chunk = min(CHUNK_IMAGES, images)
        self._held: list[dict[str, Tensor]] = []
        self._written = 0
        self._arrays = {
            layer: self._group.create_array(
                f"probability_{layer}",
                shape=(images, *grid),
                chunks=(self._chunk, *grid),
                dtype="float32",
                # A lost chunk then reads as NaN, which no metric takes for a score.
                fill_value=np.nan,
                dimension_names=("image", f"row_{layer}", f"column_{layer}"),
            )
            for layer, grid in shapes.items()
        }

    def append(self, patches: dict[str, Tensor]) -> None:
        """Add layer → (B, h, w) probabilities of the next images."""
        self._held.append(patches)
        held = sum(len(next(iter(batch.values()))) for batch in self._held)
        if held >= self._chunk:
            self._flush(held - held % self._chunk)

    def close(self) -> None:
        """Write what is left, and the consolidated metadata."""
        import zarr

        self._flush(None)
        with warnings.catch_warnings():
            # Zarr v3's consolidated metadata is not yet standardised; readers may ignore it.
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            zarr.consolidate_metadata(self._group.store)

    def _flush(self, count: int | None) -> None:
        if not self._held:
            return
        joined = {
            layer: torch.cat([batch[layer] for batch in self._held]) for layer in self._arrays
        }
        start = self._written
        for layer, array in self._arrays.items():
            values = joined[layer][:count]
            array[start : start + len(values)] = values.numpy()
            self._written = start + len(values)
        rest = {layer: values[count:].clone() for layer, values in joined.items()}
        self._held = [rest] if count is not None and len(next(iter(rest.values()))) else []


def score_images(
    detector: Detector,
    tokens: Iterator[tuple[dict[str, Tensor], dict[str, tuple[int, int]]]],
    params: ScoreParams,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Maps (B, S, S), image scores (B,) and CLS scores (B,) for batches of tokens."""
    size = detector.backbone.preprocess.size
    for batch, grids in tokens:
        with torch.inference_mode():
            patches, cls = _probabilities(detector, batch, grids)
        maps = anomaly_maps(patches, size, params.sigma)
        yield maps, image_scores(maps, cls, params), cls

"""The masks that maps are judged by, labelled once a process: every seed needs the same regions."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

from spg_pipe.datasets.manifest import Manifest, MaskState
from spg_pipe.errors import SpgError
from spg_pipe.images.annotations import annotated
from spg_pipe.images.files import mask_files
from spg_pipe.images.reading import read_mask
from spg_pipe.metrics import Regions
from spg_pipe.store.reader import FeatureStore

KEPT_BYTES = 2**24
"""A mask with a few defects takes some kilobytes, so that this holds thousands of them."""


class RegionCache:
    """Regions by mask, within a bound of bytes; the oldest leave first."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[Hashable, Regions] = OrderedDict()

    def get(self, key: Hashable, mask: Callable[[], np.ndarray]) -> Regions:
        """The regions kept under a key, or those of the mask (H, W), kept from now on."""
        if key in self._kept:
            return self._kept[key]
        regions = Regions.of(mask())
        self._kept[key] = regions
        self.nbytes += regions.nbytes
        while self.nbytes > self.limit:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes
        return regions


_CACHE = RegionCache()


class MaskRegions:
    """A store's masks at S×S, or with a manifest at the images' own sizes, from the data folder."""

    def __init__(self, store: FeatureStore, manifest: Manifest | None = None) -> None:
        self._store, self._manifest = store, manifest
        self._given = store.array("mask_state") == MaskState.GIVEN
        self._paths = store.array("path") if manifest else None

    def pixels(self, image: int) -> int:
        """Pixels of an image's mask."""
        height, width = self.shape(image)
        return height * width

    def regions(self, image: int, counts: np.ndarray | None = None) -> Regions:
        """The regions of an image's mask; none where there is no mask.

        An `SpgError` if the manifest and the store do not list the same images.

        Parameters
        ----------
        counts : (H, W) bool, optional
            Pixels that count; the regions of these are of shape (1, their number).
        """
        shape = self.shape(image)
        if counts is not None:
            mask = self._mask(image) if self._given[image] else np.zeros(shape, np.uint8)
            return Regions.of(mask * counts).among(counts)
        if not self._given[image]:
            return Regions.none(shape)
        if self._manifest is None:
            key: Hashable = (self._store.fingerprint, image)
        else:
            key = (self._manifest.exif, *_version(self._path(self._manifest, image)))
        return _CACHE.get(key, lambda: self._mask(image))

    def _mask(self, image: int) -> np.ndarray:
        if self._manifest is None:
            return self._store.masks(np.array([image]))[0]
        return read_mask(self._path(self._manifest, image), exif=self._manifest.exif)

    @staticmethod
    def _path(manifest: Manifest, image: int) -> Path:
        return manifest.root / manifest.table["mask"].iloc[image]

    def shape(self, image: int) -> tuple[int, int]:
        """(H, W) of an image's mask; an `SpgError` as of `regions`."""
        if self._manifest is None or self._paths is None:
            return self._store.image_size, self._store.image_size
        row = self._manifest.table.iloc[image]
        if row["path"] != self._paths[image]:
            raise SpgError(
                f"The manifest of {self._manifest.dataset} and {self._store.path} do not list the "
                "same images. Run `spg-pipe extract` again."
            )
        return int(row["height"]), int(row["width"])


def _version(path: Path) -> tuple[Hashable, ...]:
    """A mask as it is now: one that is corrected between two evaluations is read again."""
    try:
        drawn = annotated(path)
        files = [drawn[0]] if drawn else mask_files(path)
        stats = [(str(path / file.name), file.stat()) for file in files]
    except OSError:
        return (str(path),)  # reading it will say what is wrong
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)

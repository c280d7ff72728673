"""What latents do on the patches of stores: how often and how strongly they fire, and how well each
finds defects.

Nothing grows with the number of images: values are counted in bins, by category and by group of
images, so that intervals can be drawn over groups, and a question can be asked of one half of the
images and answered by the other.
"""

from dataclasses import dataclass

import numpy as np

from spg_pipe.explain.groups import GROUPS
from spg_pipe.explain.histograms import binned_precision, resampled_precision
from spg_pipe.explain.tally import Rebuilt, TopPatches


@dataclass(frozen=True)
class Activity:
    """What C latents do on the patches of some stores, by category. K: number of categories."""

    categories: tuple[str, ...]
    sources: tuple[tuple[int, str], ...]
    """(number of the store, name of its tokens): what was passed over."""
    counts: np.ndarray
    """(K, GROUPS, 2, C, bins) float32: patches with a value, by bin; all, and the anomalous ones.
    Images without a known mask are in neither."""
    patches: np.ndarray
    """(K, GROUPS, 2) float64: the same of patches with a value or without."""
    images: np.ndarray
    """(K,) int64"""
    all_patches: np.ndarray
    """(K,) int64: patches, with images whose mask is not known; so are those below."""
    fired: np.ndarray
    """(K, C) float64: patches with a value."""
    total: np.ndarray
    """(K, C) float64: sum of the values."""
    top: TopPatches
    """(K, C, TOP)"""
    rebuilt: Rebuilt
    """Zeros where nothing was rebuilt."""

    def rows(self, category: str | None) -> slice:
        """The categories that a name stands for; None: all."""
        if category is None:
            return slice(None)
        number = self.categories.index(category)
        return slice(number, number + 1)

    def average_precision(
        self, category: str | None = None, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """Precision of every latent's value as a detector of defective patches by itself.

        Parameters
        ----------
        category : str, optional
            Default: all patches together.
        groups : (n,) int, optional
            Only images of these groups.

        Returns
        -------
        (C,) float64; NaN without an anomalous patch
        """
        counts, patches = self._of_groups(category)
        chosen = np.arange(GROUPS) if groups is None else groups
        return binned_precision(counts[chosen].sum(axis=0), patches[chosen].sum(axis=0))

    def interval(
        self, category: str | None = None, latents: np.ndarray | None = None, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the middle 95 % of `average_precision` lie when the groups are drawn anew.

        Of up to GROUPS images in a category a group is an image.

        Parameters
        ----------
        latents : (n,) int, optional
            Only these.
        """
        counts, patches = self._of_groups(category)
        part = counts if latents is None else counts[:, :, latents]
        return resampled_precision(part, patches, seed)

    def base_rate(self, category: str | None = None) -> float:
        """Share of anomalous patches: the precision of a latent that knows nothing; NaN of none."""
        total, anomalous = self.patches[self.rows(category)].sum(axis=(0, 1))
        return float(anomalous / total) if total else float("nan")

    def rates(self, category: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of patches where each latent has a value: of all, normal and anomalous ones.

        Returns
        -------
        three of (C,) float64; NaN where there is no such patch
        """
        rows = self.rows(category)
        every, anomalous = self.counts[rows].sum(axis=(0, 1), dtype=np.float64).sum(axis=-1)
        known, defects = self.patches[rows].sum(axis=(0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (
                self.fired[rows].sum(axis=0) / self.all_patches[rows].sum(),
                (every - anomalous) / (known - defects),
                anomalous / defects,
            )

    def best(self, category: str | None = None) -> TopPatches:
        """The top patches of a category, or of all together: (C, TOP)."""
        return self.top.of(self.rows(category))

    def _of_groups(self, category: str | None) -> tuple[np.ndarray, np.ndarray]:
        """(GROUPS, 2, C, bins) and (GROUPS, 2)."""
        rows = self.rows(category)
        return self.counts[rows].sum(axis=0), self.patches[rows].sum(axis=0)

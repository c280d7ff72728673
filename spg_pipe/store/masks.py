"""Masks that teach and judge nothing: without an anomalous pixel, as given or after resizing.

`prepare` reads only the headers of masks, so a store is the first to know their pixels.
"""

from dataclasses import dataclass

import numpy as np

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.errors import counted, listed
from spg_pipe.store.reader import FeatureStore

_NAMED = 3
_COVERING = 0.9
"""Share of an image that few defects cover."""


@dataclass(frozen=True)
class MaskLosses:
    """Rows of a store whose given mask is not what was drawn."""

    empty: np.ndarray
    """(n,) images whose mask has no anomalous pixel in its file."""
    vanished: np.ndarray
    """(n,) images whose whole mask was lost when it was resized to S×S."""
    regions: int
    """Regions that were lost so, in these and in other images."""
    covering: np.ndarray
    """(n,) images whose mask covers more than `_COVERING` of them."""


def mask_losses(store: FeatureStore) -> MaskLosses:
    """Look through the given masks of a store, and at its count of lost regions."""
    given = np.flatnonzero(store.array("mask_state") == MaskState.GIVEN)
    shares = np.array([store.masks(np.array([row])).mean() for row in given])
    rows = given[shares == 0]
    lost = store.array("lost_regions")
    # A mask that loses no region and is blank had none.
    covering = given[shares > _COVERING]
    return MaskLosses(rows[lost[rows] == 0], rows[lost[rows] > 0], int(lost.sum()), covering)


def mask_notes(store: FeatureStore) -> list[str]:
    """What a person should know about the given masks: a sentence each, none if all is well."""
    losses = mask_losses(store)
    notes = []
    if number := len(losses.empty):
        notes.append(
            f"{counted(number, 'given mask')} without a single anomalous pixel, so every pixel "
            f"there counts as normal: of {_paths(store, losses.empty)}. Correct them (values above "
            "0 are defect) and extract again with --replace."
        )
    if number := len(losses.covering):
        notes.append(
            f"{counted(number, 'given mask')} covering more than {_COVERING:.0%} of the image, as "
            f"if black were the defect: of {_paths(store, losses.covering)}. If so, invert them "
            "(values above 0 are defect) and extract again with --replace."
        )
    if losses.regions:
        whole = len(losses.vanished)
        notes.append(
            f"{counted(losses.regions, 'region')} of masks vanished in resizing to "
            f"{store.image_size}×{store.image_size}"
            + (f", and with them {counted(whole, 'whole mask')}" if whole else "")
            + f": of {_paths(store, np.flatnonzero(store.array('lost_regions')))}"
        )
    return notes


def _paths(store: FeatureStore, rows: np.ndarray) -> str:
    return listed(store.array("path")[rows].tolist(), _NAMED)

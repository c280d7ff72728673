"""The tables of an atlas: every atom over all images and by category (docs/explain.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from spg_pipe.detector.model import Detector
from spg_pipe.explain.activity import Activity, Measure, Rebuild
from spg_pipe.explain.codes import projection_code, sae_code
from spg_pipe.explain.crops import Place
from spg_pipe.explain.dictionary import layout_2d, matches, nearest_atoms
from spg_pipe.explain.tally import TOP, TopPatches
from spg_pipe.guides.layer import LayerGuides
from spg_pipe.sae.model import sae_input
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore

PROJECTED = 64
"""Atoms of a layer, those with the largest coefficients, whose projections are measured: guides may
have thousands."""
TOP_OF_CATEGORY = 4
"""Crops of a category; of all together there are `TOP`."""
NEAREST = 6


@dataclass(frozen=True)
class LayerAtoms:
    """What is described of a layer, and by what."""

    layer: str
    ids: np.ndarray
    """(A,) int64: the latents that get a row."""
    used: np.ndarray
    """(M,) int64: those of the detector."""
    coefficients: np.ndarray
    """(M,) float64 of the patches' guides."""
    detection: np.ndarray
    """(M,) float64 of the images'; zeros where they have none."""
    projected: np.ndarray
    """(P,) int: rows of `used`."""

    @classmethod
    def of(cls, detector: Detector, layer: str, latents: int, *, every: bool) -> "LayerAtoms":
        """The detector's atoms of a layer, or every latent."""
        guides, view = detector.layers[layer], detector.record.detection
        patches = _coefficients(detector, guides, "patches")
        detection = np.zeros_like(patches)
        if view in guides.pairs:
            detection = guides.coefficients(view, as_cosines=not detector.contrast).numpy()
        used = guides.atom_ids.numpy()
        strongest = np.argsort(-np.abs(patches), kind="stable")[:PROJECTED]
        projected = np.sort(strongest[patches[strongest] != 0])
        ids = np.arange(latents) if every else used
        return cls(layer, ids, used, patches, detection, projected)

    def measures(self, detector: Detector, saes: SaeRun) -> list[Measure]:
        """Of the SAE's latents; and, if there are any, of signed projections on atoms."""
        sae, params = saes.layers[self.layer], saes.record.sae
        norm = params.input_norm if params else "none"
        atoms = sae.atoms.detach()
        rebuild = Rebuild(atoms, lambda x: sae_input(x, norm))
        found = [Measure(self.layer, sae_code(sae, norm), len(atoms), rebuild=rebuild)]
        if len(self.projected):
            signs = torch.from_numpy(np.sign(self.coefficients[self.projected])).float()
            vectors = signs[:, None] * detector.layers[self.layer].atoms[self.projected]
            code = projection_code(vectors)
            found.append(Measure(self.layer, code, len(vectors), dense=True))
        return found

"""Which atoms of a layer are described, and what is measured of them."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from spg_pipe.detector.model import Detector
from spg_pipe.explain.codes import projection_code, sae_code
from spg_pipe.explain.measure import Measure, Rebuild
from spg_pipe.sae.model import sae_input
from spg_pipe.sae.run import SaeRun

STRONGEST = 64
"""Atoms of a layer, those with the largest coefficients of a view, whose projections are measured
and that have crops by category: trained guides may have thousands."""


@dataclass(frozen=True)
class LayerAtoms:
    """What is described of a layer."""

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
    """(P,) int: rows of `used` whose projections on patches are measured."""
    pictured: np.ndarray
    """(Q,) int: rows of `used` that have crops by category."""

    @classmethod
    def of(cls, detector: Detector, layer: str, latents: int, *, every: bool) -> "LayerAtoms":
        """The detector's atoms of a layer, or every latent."""
        guides, cosines = detector.layers[layer], not detector.contrast
        patches = guides.coefficients("patches", as_cosines=cosines).numpy()
        detection = np.zeros_like(patches)
        if (view := detector.record.detection) in guides.pairs:
            detection = guides.coefficients(view, as_cosines=cosines).numpy()
        used = guides.atom_ids.numpy()
        ids = np.arange(latents) if every else used
        projected = _strongest(patches)
        pictured = np.union1d(projected, _strongest(detection))
        return cls(layer, ids, used, patches, detection, projected, pictured)

    def measures(self, detector: Detector, saes: SaeRun, device: str) -> list[Measure]:
        """Of the SAE's latents; and, if there are any, of signed projections on atoms."""
        sae, params = deepcopy(saes.layers[self.layer]).to(device), saes.record.sae
        norm = params.input_norm if params else "none"
        rebuild = Rebuild(sae.atoms.detach(), lambda x: sae_input(x, norm))
        code = sae_code(sae, norm)
        found = [Measure(self.layer, code, len(sae.atoms), rebuild=rebuild)]
        if len(self.projected):
            signs = torch.from_numpy(np.sign(self.coefficients[self.projected])).float()
            vectors = signs[:, None] * detector.layers[self.layer].atoms[self.projected]
            code = projection_code(vectors.to(device))
            found.append(Measure(self.layer, code, len(vectors), dense=True))
        return found


def _strongest(coefficients: np.ndarray) -> np.ndarray:
    """Rows of the largest |coefficients| that are not 0, in order."""
    rows = np.argsort(-np.abs(coefficients), kind="stable")[:STRONGEST]
    return np.sort(rows[coefficients[rows] != 0])

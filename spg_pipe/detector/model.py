"""The deployable: guide vectors and everything that scoring an image needs, in one folder.

It holds no SAE and no training data. `make` makes it, `judge` and `scores` apply it.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artefacts.checkpoint import below
from spg_pipe.artefacts.digests import CURVE, file_digests, load_tensors, save_tensors
from spg_pipe.artefacts.files import fresh_folder, write_text
from spg_pipe.artefacts.reading import reading
from spg_pipe.artefacts.record import read_record, write_record
from spg_pipe.backbones.spec import BackboneSpec, TokenKey
from spg_pipe.decision.components import (
    Components,
    SelfDistance,
    Sides,
    components,
    self_distance,
)
from spg_pipe.decision.kept import Kept, patch_shares
from spg_pipe.decision.model import MAP_TOP, Decision
from spg_pipe.decision.rules import Additive, Published, Rule
from spg_pipe.detector.record import DetectorRecord
from spg_pipe.errors import SpgError
from spg_pipe.guides.layer import LayerGuides, Pair, View
from spg_pipe.guides.model import (
    TAU,
    anomaly_probability,
    cosines,
    detection_feature,
    projections,
    to_grid,
)
from spg_pipe.recipe.params import ScoreParams

_MAKE = "spg-pipe train-guides"
_UNSAVED = {"tensors_sha256": "", "files_sha256": dict[str, str]()}
Grids = Mapping[TokenKey, tuple[int, int]]


@dataclass(frozen=True)
class Detector:
    """Guides of every layer and the full specification around them."""

    layers: dict[str, LayerGuides]
    record: DetectorRecord

    @property
    def fingerprint(self) -> str:
        """The fingerprint of what determined the guides."""
        return self.record.fingerprint

    @property
    def contrast(self) -> bool:
        """Whether the guides are contrast guides (docs/method.md §7), or trained ones."""
        return self.record.guides.kind == "contrast"

    @cached_property
    def sides(self) -> dict[str, Sides]:
        """Layer → what its tokens are measured by."""
        return {
            layer: Sides(guides.directions(as_cosines=not self.contrast), guides.basis)
            for layer, guides in self.layers.items()
        }

    @property
    def decision(self) -> Decision:
        """The additive decision; an `SpgError` if none was fitted."""
        if isinstance(self.record.rule, Additive):
            return self.record.rule.decision
        raise SpgError(
            "score.rule: additive needs a detector with a decision, and this one was trained with "
            "score.rule: published. Run `spg-pipe train-guides` with score.rule: additive, or "
            "score with --set score.rule=published."
        )

    @property
    def supervision(self) -> str:
        """What the guides were allowed to see."""
        return self.record.auxiliary.supervision

    def rule(self, asked: ScoreParams | None = None) -> Rule:
        """How to score: as the detector was made for, or as options ask.

        An `SpgError` if they ask for a decision, and none was fitted.
        """
        if asked and asked.rule == "published":
            return Published(image_score=asked.image_score)
        if asked:
            _ = self.decision  # raises where none was fitted
        return self.record.rule

    def own_images_note(self, target: str, contents: Set[str]) -> str:
        """What to say of a target that holds images of `painted_on`; empty if it holds none.

        `contents` are the `source_id` of the target's images.
        """
        if not (shared := len(contents & set(self.record.painted_on))):
            return ""
        were = "was" if shared == 1 else "were"
        return (
            f"Note: the defects of {self.record.auxiliary.dataset}, the detector's auxiliary "
            f"set, were painted on normal images of which {shared} {were} taken from {target} "
            "itself; this is not zero-shot."
        )

    def log_odds(
        self,
        tokens: Mapping[TokenKey, Tensor],
        grids: Grids | None = None,
        kept: Kept | None = None,
    ) -> tuple[dict[TokenKey, Tensor], dict[str, np.ndarray]]:
        """Judge tokens by the additive decision; parameters as for `probabilities`.

        An `SpgError` if the detector has no decision.

        Returns
        -------
        patches : dict of key → (B, h, w) float32
            Log odds of every patch.
        values : dict of image component → (B,) float64
            All that need no map.
        """
        patches, parts = self.measured(tokens, grids, kept)
        return patches, self.decision.image_values((key.layer, raw) for key, raw in parts.items())

    def measured(
        self,
        tokens: Mapping[TokenKey, Tensor],
        grids: Grids | None = None,
        kept: Kept | None = None,
        *,
        away: SelfDistance = self_distance,
    ) -> tuple[dict[TokenKey, Tensor], dict[TokenKey, Components]]:
        """Log odds of patches as of `log_odds`, and the components that they are made of."""
        decision = self.decision
        patches, parts = {}, {}
        for key, batch in tokens.items():
            guides = self._guides(key, batch)
            grid = grids[key] if grids else guides.grid
            shares, sides = patch_shares(kept, grid), self.sides[key.layer].to(batch.device)
            parts[key] = components(batch, sides, grid, shares, away=away)
            patches[key] = to_grid(decision.log_odds(key.layer, parts[key]), grid)
        return patches, parts

    def probabilities(
        self,
        tokens: Mapping[TokenKey, Tensor],
        grids: Grids | None = None,
        *,
        tau: float = TAU,
        kept: Kept | None = None,
    ) -> tuple[dict[TokenKey, Tensor], Tensor]:
        """Score tokens by the guides alone: four dot products each.

        Parameters
        ----------
        tokens : dict of key → (B, 1 + N, D) float32
            Token 0 is CLS.
        grids : dict of key → (h, w), optional
            Default: the grid that the guides were made on.
        tau : float
            Temperature.
        kept : Kept, optional
            Which pixels count.

        Returns
        -------
        patches : dict of key → (B, h, w) float32
            Anomaly probability of every patch.
        cls : (B,) float64
            Anomaly probability of the whole image from the global guides, mean over layers. On a
            new domain it is within 1e-6 of one, where float32 would round most of it away.
        """
        similarity = projections if self.contrast else cosines
        detection = self.record.detection
        patches, images = {}, []
        for key, batch in tokens.items():
            guides = self._guides(key, batch)
            grid = grids[key] if grids else guides.grid
            local = guides.pairs["patches"].vectors.to(batch.device)
            probability = anomaly_probability(similarity(batch[:, 1:], local), tau)
            patches[key] = to_grid(probability, grid)
            if detection not in guides.pairs:  # no category had both classes of images
                images.append(batch.new_full((len(batch),), 0.5).double())
                continue
            whole = guides.pairs[detection].vectors.to(batch.device)
            feature = detection_feature(batch, detection, kept=patch_shares(kept, grid))
            images.append(anomaly_probability(similarity(feature, whole).double(), tau))
        return patches, torch.stack(images).mean(dim=0)

    def _guides(self, key: TokenKey, tokens: Tensor) -> LayerGuides:
        """The guides for tokens (B, 1 + N, D); SpgError if they are of another width."""
        guides = self.layers[key.layer]
        if tokens.shape[-1] != guides.atoms.shape[-1]:
            widths = f"{tokens.shape[-1]} wide, the guides {guides.atoms.shape[-1]}"
            raise SpgError(f"Layer {key.name}: the tokens are {widths}. Run `{_MAKE}` again.")
        return guides

    def check_backbone(self, spec: BackboneSpec, what: str) -> None:
        """Refuse tokens of another backbone with an `SpgError` that names every difference."""
        ours, theirs = self.record.backbone, spec.untiled
        differences = [
            f"{key}: the detector has {getattr(ours, key)!r}, {what} has {getattr(theirs, key)!r}"
            for key in ours.differing(theirs)
        ]
        if differences:
            raise SpgError(
                f"{what} was made with another backbone than the detector:\n  "
                + "\n  ".join(differences)
                + "\nExtract with the detector's backbone, or train a detector on this one."
            )

    def save(self, path: Path, curve: str = "") -> None:
        """Write detector.safetensors, config.json and the training curve as one folder."""
        tensors: dict[str, Tensor] = {}
        for layer, guides in self.layers.items():
            tensors |= {f"{layer}.atom_ids": guides.atom_ids, f"{layer}.atoms": guides.atoms}
            for view, pair in guides.pairs.items():
                tensors[f"{layer}.{view}.vectors"] = pair.vectors
                tensors[f"{layer}.{view}.codes"] = pair.codes
        with fresh_folder(path) as folder:
            sha256 = save_tensors(folder / "detector.safetensors", tensors)
            if curve:
                write_text(folder / CURVE, curve)
            beside = file_digests(folder, CURVE) if curve else {}
            digests = {"tensors_sha256": sha256, "files_sha256": beside}
            write_record(folder / "config.json", self.record.model_copy(update=digests))

    @classmethod
    def load(cls, path: Path) -> "Detector":
        """Read a detector's folder.

        An `SpgError` if it is missing, damaged or of another format.
        """
        path = Path(path)  # a library caller may give a string
        record = read_record(path / "config.json", DetectorRecord, "detector", _MAKE)
        tensors = load_tensors(
            path / "detector.safetensors", record.tensors_sha256, "detector", _MAKE
        )
        with reading(path, "detector", _MAKE):
            layers = {}
            views: tuple[View, View] = (record.detection, "patches")
            for layer, grid in record.layers.items():
                held, pairs = below(tensors, f"{layer}."), {}
                for view in views:
                    if view == "patches" or f"{view}.vectors" in held:
                        normal, anomaly = held[f"{view}.vectors"]
                        pairs[view] = Pair(normal, anomaly, held[f"{view}.codes"])
                layers[layer] = LayerGuides(pairs, held["atom_ids"], held["atoms"], grid)
            detector = cls(layers, record.model_copy(update=_UNSAVED))
            detector._try()
        return detector

    def _try(self) -> None:
        """Judge a made-up image, which fails where tensors and record do not fit each other."""
        tokens = {}
        for layer, guides in self.layers.items():
            count, width = guides.atoms.shape
            for pair in guides.pairs.values():
                if (pair.codes.shape, *guides.atom_ids.shape) != ((2, count), count):
                    raise ValueError(f"layer {layer} has codes or atom_ids of other atoms")
            tokens[TokenKey(layer)] = torch.ones(1, 2, width)
        grids = dict.fromkeys(tokens, (1, 1))
        self.probabilities(tokens, grids)
        if isinstance(self.record.rule, Additive):
            values = self.log_odds(tokens, grids)[1] | {MAP_TOP: np.zeros(1)}
            np.concatenate(list(self.decision.shares(values).values()))

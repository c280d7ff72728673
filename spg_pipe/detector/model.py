"""The deployable: guide vectors and everything that scoring an image needs, in one folder.

It holds no SAE and no training data. `detector_training` makes it, `scoring` applies it.
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artefacts.digests import require_fingerprint
from spg_pipe.artefacts.files import fresh_folder, read_json, write_json
from spg_pipe.artefacts.tensors import load_tensors, save_tensors
from spg_pipe.backbones.spec import BackboneSpec, backbone_layer
from spg_pipe.decision.components import components
from spg_pipe.decision.model import Decision
from spg_pipe.errors import SpgError
from spg_pipe.guides.contrast import VIEWS, Pair
from spg_pipe.guides.model import (
    anomaly_probability,
    cosines,
    detection_feature,
    effective_codes,
    guide_vectors,
    projections,
    to_grid,
    unit,
)
from spg_pipe.metrics.tables import seen_in
from spg_pipe.recipe.params import ScoreParams

FORMAT = 1


@dataclass(frozen=True)
class LayerGuides:
    """The guides of one layer, with the atoms that they are made of."""

    vectors: Tensor
    """(G, D) guide vectors g = e A: a normal and an anomaly guide for CLS and for patches, and
    for mean tokens too if they are contrast guides."""
    atom_ids: Tensor
    """(M,) int64: latents with a positive code in any guide."""
    atom_codes: Tensor
    """(G, M) effective codes of those latents."""
    atoms: Tensor
    """(M, D) their dictionary rows."""
    grid: tuple[int, int]
    """Patch grid that the guides were trained on; scoring accepts any."""

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        atoms: Tensor,
        dead: Tensor,
        top_k: int | None,
        grid: tuple[int, int],
    ) -> "LayerGuides":
        """Keep what the effective codes (4, C) use of a dictionary (C, D)."""
        effective = effective_codes(codes, dead, top_k)
        used = torch.nonzero((effective > 0).any(dim=0))[:, 0]
        return cls(
            guide_vectors(effective, atoms).contiguous(),
            used,
            effective[:, used].contiguous(),
            atoms[used].contiguous(),
            grid,
        )

    @classmethod
    def from_pairs(
        cls, pairs: dict[str, Pair | None], atoms: Tensor, grid: tuple[int, int]
    ) -> "LayerGuides":
        """Join contrast guides of all `VIEWS` over a dictionary (C, D); None leaves zeros."""
        rows = atoms.new_zeros((2 * len(VIEWS), len(atoms)))
        for number, view in enumerate(VIEWS):
            if pair := pairs[view]:
                rows[2 * number : 2 * number + 2, pair.atom_ids] = pair.codes
        return cls.from_codes(rows, atoms, torch.zeros(len(atoms), dtype=torch.bool), None, grid)


@dataclass(frozen=True)
class Detector:
    """Guides of every layer and the full specification around them.

    `config` holds the backbone's spec, τ, the scoring options, the decision (or null), the
    protocol, the fingerprints of what it was made from, and the licences of data and weights.
    """

    layers: dict[str, LayerGuides]
    config: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of what determined the guides."""
        return str(self.config["fingerprint"])

    @property
    def backbone(self) -> BackboneSpec:
        """The backbone whose tokens the guides understand."""
        return BackboneSpec.model_validate(self.config["backbone"])

    @property
    def score(self) -> ScoreParams:
        """Options of maps and image scores."""
        # A detector that says no rule is older than the choice.
        return ScoreParams.model_validate({"rule": "published"} | self.config["score"])

    @property
    def contrast(self) -> bool:
        """Whether the guides are contrast guides (docs/method.md §7), or trained ones."""
        return bool(self.config["guides"].get("kind") == "contrast")

    @property
    def decision(self) -> Decision | None:
        """The additive decision, if one was fitted."""
        content = self.config.get("decision")
        return Decision.from_dict(content) if content else None

    @property
    def sees(self) -> str:
        """What the guides were allowed to see."""
        return seen_in(self.config["auxiliary"].get("synthetic", {}))

    @property
    def painted_on(self) -> frozenset[str]:
        """`source_id` of each normal image that the auxiliary set's defects were painted on."""
        return frozenset(self.config.get("painted_on", ()))

    def own_images_note(self, target: str, contents: Set[str]) -> str:
        """What to say of a target that holds images of `painted_on`; empty if it holds none.

        Parameters
        ----------
        contents
            `source_id` of the target's images.
        """
        if not (shared := len(self.painted_on & contents)):
            return ""
        were = "was" if shared == 1 else "were"
        return (
            f"Note: the defects of {self.config['auxiliary']['dataset']}, the detector's auxiliary "
            f"set, were painted on normal images of which {shared} {were} taken from {target} "
            "itself; this is not zero-shot."
        )

    def directions(self, layer: str) -> dict[str, Tensor]:
        """View → (1, D): what a unit token is multiplied with, from normal to anomaly.

        Of trained guides the difference of the cosines over τ, of contrast guides that of the
        guides as they are.
        """
        vectors, views = self.layers[layer].vectors, VIEWS
        if not self.contrast:
            vectors = unit(vectors) / float(self.config["tau"])
            views = (self.config["detection"], *VIEWS[1:])
        pairs = vectors.unflatten(0, (-1, 2))
        return {
            view: (anomaly - normal)[None]
            for view, (normal, anomaly) in zip(views, pairs, strict=False)
            if bool((anomaly != normal).any())
        }

    def log_odds(
        self, tokens: dict[str, Tensor], grids: dict[str, tuple[int, int]] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Judge tokens by the additive decision.

        Parameters
        ----------
        tokens, grids
            As for `probabilities`.

        Returns
        -------
        patches : dict of layer → (B, h, w) float32
            Log odds of every patch.
        values : dict of image component → (B,) float64
            All that need no map.

        Raises
        ------
        SpgError
            If the detector has no decision.
        """
        decision = self.require_decision()
        patches, found = {}, {}
        for name, batch in tokens.items():
            layer = backbone_layer(name)
            views = {view: side.to(batch.device) for view, side in self.directions(layer).items()}
            found[name] = components(batch, views)
            grid = grids[name] if grids else self.layers[layer].grid
            values = decision.grid(name, found[name].guides[:, 0], found[name].dissimilarity)
            patches[name] = to_grid(values, grid)
        return patches, decision.image_values(found)

    def require_decision(self) -> Decision:
        """The additive decision.

        Raises
        ------
        SpgError
            If none was fitted.
        """
        if found := self.decision:
            return found
        raise SpgError(
            "score.rule: additive needs a detector with a decision, and this one was trained with "
            "score.rule: published. Run `spg-pipe train-guides` with score.rule: additive, or "
            "score with --set score.rule=published."
        )

    def probabilities(
        self, tokens: dict[str, Tensor], grids: dict[str, tuple[int, int]] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Score tokens by the guides alone: four dot products each.

        Parameters
        ----------
        tokens : dict of layer → (B, 1 + N, D) float32
            Token 0 is CLS.
        grids : dict of layer → (h, w), optional
            Default: the grid of training.

        Returns
        -------
        patches : dict of layer → (B, h, w) float32
            Anomaly probability of every patch.
        cls : (B,) float64
            Anomaly probability of the whole image from the global guides, mean over layers. On a
            new domain it is within 1e-6 of one, where float32 would round most of it away.
        """
        tau = float(self.config["tau"])
        patches, images = {}, []
        for name, batch in tokens.items():
            guides = self.layers[backbone_layer(name)]
            vectors = guides.vectors.to(batch.device)
            similarity = projections if self.contrast else cosines
            grid = grids[name] if grids else guides.grid
            local = anomaly_probability(similarity(batch[:, 1:], vectors[2:4]), tau)
            patches[name] = to_grid(local, grid)
            detection = self.config["detection"]
            feature = detection_feature(batch, detection)
            # Trained guides have one pair for the image, contrast guides one for each view.
            first = 2 * VIEWS.index(detection) if self.contrast else 0
            pair = vectors[first : first + 2]
            images.append(anomaly_probability(similarity(feature, pair).double(), tau))
        return patches, torch.stack(images).mean(dim=0)

    def check_backbone(self, spec: BackboneSpec, what: str) -> None:
        """Refuse tokens of another backbone.

        Raises
        ------
        SpgError
            Naming every difference.
        """
        ours, theirs = self.backbone.content(), spec.untiled.content()
        differences = [
            f"{key}: the detector has {ours[key]!r}, {what} has {theirs.get(key)!r}"
            for key in ours
            # The same bytes of weights can come from a hub or from a file.
            if key not in ("alias", "weights", "licence") and ours[key] != theirs.get(key)
        ]
        if differences:
            raise SpgError(
                f"{what} was made with another backbone than the detector:\n  "
                + "\n  ".join(differences)
                + "\nExtract with the detector's backbone, or train a detector on this one."
            )

    def save(self, path: Path, curve: str = "") -> None:
        """Write detector.safetensors, config.json and the training curve as one folder."""
        tensors = {}
        for name, guides in self.layers.items():
            for key in ("vectors", "atom_ids", "atom_codes", "atoms"):
                tensors[f"{name}.{key}"] = getattr(guides, key)
        with fresh_folder(path) as folder:
            sha256 = save_tensors(folder / "detector.safetensors", tensors)
            write_json(folder / "config.json", self.config | {"tensors_sha256": sha256})
            if curve:
                (folder / "curve.csv").write_text(curve)

    @classmethod
    def load(cls, path: Path) -> "Detector":
        """Read a detector's folder.

        Raises
        ------
        SpgError
            If it is missing, damaged or of another format.
        """
        config = read_json(Path(path) / "config.json", "Detector")
        if config.get("kind") != "detector" or config.get("format") != FORMAT:
            raise SpgError(
                f"{path} is not a detector of format {FORMAT} (found "
                f"{config.get('kind')!r}, format {config.get('format')!r})."
            )
        require_fingerprint(Path(path), config, "detector", "spg-pipe train-guides")
        try:
            tensors = load_tensors(
                Path(path) / "detector.safetensors",
                config.pop("tensors_sha256"),
                "detector",
                "spg-pipe train-guides",
            )
            layers = {
                name: LayerGuides(
                    vectors=tensors[f"{name}.vectors"],
                    atom_ids=tensors[f"{name}.atom_ids"],
                    atom_codes=tensors[f"{name}.atom_codes"],
                    atoms=tensors[f"{name}.atoms"],
                    grid=(value["grid"][0], value["grid"][1]),
                )
                for name, value in config["layers"].items()
            }
            detector = cls(layers, config)
            # Read once here, so that a damaged config is found now and not in mid-work.
            _ = detector.backbone, detector.score, detector.fingerprint, config["licences"]
            _ = detector.decision, detector.contrast, detector.sees, detector.painted_on
            _ = config["protocol"]["name"], config["protocol"]["exif_of_own_images"]
        except (KeyError, TypeError, ValueError) as error:
            raise SpgError(
                f"{path} is not a whole detector ({error}). "
                "Train it again with `spg-pipe train-guides`, or copy it again."
            ) from error
        return detector

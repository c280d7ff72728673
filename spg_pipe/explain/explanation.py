"""A decision taken apart exactly: bias + components, those made of guides as sums over atoms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.spec import BackboneSpec, TokenKey
from spg_pipe.decision.kept import Kept
from spg_pipe.decision.model import MAP_TOP, coarse_maps, coarse_shares
from spg_pipe.decision.rules import Additive, Published, Rule
from spg_pipe.detector.judge import Judged, judge, with_kept_prefix
from spg_pipe.detector.model import Detector
from spg_pipe.explain.parts import (
    MAP_GUIDES,
    Part,
    coefficients_of,
    gains_of,
    guides_parts,
    unit_tokens,
)
from spg_pipe.guides.layer import LayerGuides, View

MAP_SELF_DISTANCE = "map_self_distance"
"""Of the image score: the other part of the map where it is highest. With that of the guides it is
the scores' column share_map_top."""


BANK = "bank"
"""Of the image score: how unlike normal images it is, where there is a bank of them."""


class AtomRow(NamedTuple):
    """What a contribution is of."""

    layer: str
    atom: int
    """Latent of the layer's SAE."""
    component: str
    """MAP_GUIDES or DETECTION."""


@dataclass(frozen=True)
class Explanation:
    """Scores of B images, taken apart: score = bias + Σ components."""

    detector: Detector
    scores: np.ndarray
    """(B,) float64"""
    bias: float
    components: dict[str, np.ndarray]
    """Component → (B,) float64 part of the score."""
    offsets: dict[str, np.ndarray]
    """Component made of guides → (B,): the component less its atoms' contributions."""
    atoms: tuple[AtomRow, ...]
    """R rows: the atoms with a coefficient, for each component made of guides."""
    contributions: np.ndarray
    """(B, R) float64"""
    excess: np.ndarray
    """(B, R) float64: a contribution to the map's part less what it would be if all pixels of the
    image counted alike: what sets the highest pixels apart. NaN for `detection`."""
    peaks: np.ndarray
    """(B, 2) float64: row and column of the map's highest point, as shares of height and width."""
    fields: Mapping[str, "Field"]
    """Name of tokens → where its atoms' maps come from."""
    log_odds: bool
    """The map adds up log odds; otherwise it is of probabilities."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def finest_grid(self) -> tuple[int, int]:
        """(h, w) of the tokens with most patches."""
        return max((field.grid for field in self.fields.values()), key=lambda grid: grid[0])

    def finest(self, layer: str) -> str:
        """Name of a layer's tokens, of several sides those with most patches."""
        own = self.detector.layers[layer]
        names = [name for name, field in self.fields.items() if field.guides is own]
        return max(names, key=lambda name: self.fields[name].grid[0])

    def strongest(self, image: int) -> np.ndarray:
        """(R,) int: rows of an image from the largest |contribution| down."""
        return np.argsort(-np.abs(self.contributions[image]), kind="stable")

    def most_apart(self, image: int) -> np.ndarray:
        """Rows of the map's part from the largest |excess| down."""
        rows = np.flatnonzero(np.isfinite(self.excess[image]))
        return rows[np.argsort(-np.abs(self.excess[image, rows]), kind="stable")]

    def atom_map(self, image: int, name: str, atom: int) -> np.ndarray:
        """An atom's part of the map of some tokens, (h, w) float64.

        `name` is that of tokens: a layer, with a side where images are in tiles of several sides;
        `atom` a latent of the layer's SAE.
        """
        return self.fields[name].of_atom(image, atom)

    def guides_map(self, image: int, name: str) -> np.ndarray:
        """The guides' part of the map, (h, w) float64: an offset and the sum over all atoms."""
        return self.fields[name].whole(image)


@dataclass(frozen=True)
class Field:
    """How each patch of some tokens counts towards the map, atom by atom."""

    patches: Tensor
    """(B, N, D) float32 tokens."""
    grid: tuple[int, int]
    gains: np.ndarray
    """(B, N) or (): what a unit of a token's product with the direction adds to the map."""
    offset: float
    guides: LayerGuides
    coefficients: np.ndarray
    """(M,) float64 of the layer's atoms."""

    def of_atom(self, image: int, atom: int) -> np.ndarray:
        """An atom's part of the map, (h, w) float64; zeros if it is not among the guides' atoms."""
        rows = np.flatnonzero(self.guides.atom_ids.numpy() == atom)
        side = self.guides.atoms.numpy()[rows].astype(np.float64)
        return self._along(image, self.coefficients[rows] @ side)

    def whole(self, image: int) -> np.ndarray:
        """The offset and all atoms' parts, (h, w) float64."""
        side = self.coefficients @ self.guides.atoms.numpy().astype(np.float64)
        return self.offset + self._along(image, side)

    def _along(self, image: int, side: np.ndarray) -> np.ndarray:
        tokens = unit_tokens(self.patches[image])
        gains = self.gains[image] if self.gains.ndim else self.gains
        return np.asarray(gains * (tokens @ side)).reshape(self.grid)


def explain(
    detector: Detector,
    tokens: Mapping[str, Tensor],
    grids: Mapping[str, tuple[int, int]] | None = None,
    seen: BackboneSpec | None = None,
    rule: Rule | None = None,
    judged: Judged | None = None,
    kept: Kept | None = None,
) -> Explanation:
    """Take the scores of a batch of images apart.

    Sums are float64 over the same float32 tokens that were judged; they agree with the scores to
    about 1e-6. Which pixels count as the map's highest is taken as it is. An `SpgError` as of
    `judge`.

    Parameters
    ----------
    tokens : dict of name → (B, 1 + N, D) float32
    grids : dict of name → (h, w), optional
        Default: those that the guides were made on.
    seen : BackboneSpec, optional
        How the tokens were made. Default: as the detector's were, not in tiles.
    rule : Rule, optional
        Default: the detector's.
    judged : Judged, optional
        What was said of these tokens, if it is known, also with a bank: its share is a component.
    kept : Kept, optional
        Which pixels count.
    """
    seen, rule = seen or detector.record.backbone, rule or detector.record.rule
    grids = grids or {name: detector.layers[name].grid for name in tokens}
    judged = judged or judge(detector, tokens, grids, seen, rule, kept)
    keyed, shapes = seen.keyed(tokens), seen.keyed(grids)
    with torch.inference_mode():
        counted = with_kept_prefix(keyed, shapes, seen, kept)
        parts = guides_parts(detector, counted, shapes, seen, rule, judged, kept)
        fields = {
            key.name: _field(detector, key, batch, shapes[key], rule, kept)
            for key, batch in keyed.items()
        }
    bias = rule.decision.bias if isinstance(rule, Additive) else 0.0
    rows, contributions, excess = _rows(detector, parts, len(judged.columns["score"]))
    return Explanation(
        detector=detector,
        scores=judged.columns["score"].astype(np.float64),
        bias=bias,
        components=_components(rule, judged, parts),
        offsets={name: part.offsets for name, part in parts.items()},
        atoms=rows,
        contributions=contributions,
        excess=excess,
        peaks=_peaks(judged, seen, kept),
        fields=fields,
        log_odds=isinstance(rule, Additive),
    )


def _field(
    detector: Detector,
    key: TokenKey,
    batch: Tensor,
    grid: tuple[int, int],
    rule: Rule,
    kept: Kept | None,
) -> Field:
    guides, patches = detector.layers[key.layer], batch[:, 1:]
    published = isinstance(rule, Published)
    if isinstance(rule, Published):
        gains, offset = gains_of(detector, key, patches, "patches"), 0.5
    else:
        scale = rule.decision.scales[key.layer]["guides"]
        gain = rule.decision.map_weights.guides / scale.deviation
        gains, offset = np.array(gain), -gain * scale.mean
    if kept is not None:  # atoms say nothing where nothing counts
        gains = gains * (kept.at(grid).flatten(1) > 0).numpy()
    coefficients = coefficients_of(detector, guides, "patches", published=published).numpy()
    return Field(patches, grid, gains, offset, guides, coefficients)


def _rows(
    detector: Detector, parts: Mapping[str, Part], images: int
) -> tuple[tuple[AtomRow, ...], np.ndarray, np.ndarray]:
    """The atoms that have a coefficient in a component, their contributions and excess (B, R)."""
    rows = list[AtomRow]()
    columns, excess = [np.zeros((images, 0))], [np.zeros((images, 0))]
    for name, part in parts.items():
        view: View = "patches" if name == MAP_GUIDES else detector.record.detection
        for layer, values in part.of_layers.items():
            guides = detector.layers[layer]
            used = torch.nonzero(guides.pairs[view].codes.any(dim=0))[:, 0].tolist()
            rows += [AtomRow(layer, int(guides.atom_ids[atom]), name) for atom in used]
            alike = np.nan if part.everywhere is None else part.everywhere[layer][:, used]
            columns.append(values[:, used])
            excess.append(values[:, used] - alike)
    return tuple(rows), np.concatenate(columns, axis=1), np.concatenate(excess, axis=1)


def _components(rule: Rule, judged: Judged, parts: Mapping[str, Part]) -> dict[str, np.ndarray]:
    """What adds up to the score less the bias."""
    if isinstance(rule, Published):
        return {name: part.total for name, part in parts.items()}
    components = {
        name.removeprefix("share_"): share
        for name, share in judged.columns.items()
        if name.startswith("share_")
    }
    if MAP_TOP not in components:
        return components
    top = components.pop(MAP_TOP)
    if MAP_GUIDES not in parts:
        return {MAP_SELF_DISTANCE: top, **components}
    if not rule.decision.map_weights.self_distance:
        return {MAP_GUIDES: top, **components}
    guides = parts[MAP_GUIDES].total
    return {MAP_GUIDES: guides, MAP_SELF_DISTANCE: top - guides, **components}


def _peaks(judged: Judged, seen: BackboneSpec, kept: Kept | None) -> np.ndarray:
    """(B, 2): where the map of whole images is highest, as shares of its height and width."""
    maps, shares, size = judged.maps, judged.kept, seen.preprocess.size
    # What a score is made from is not the map that is shown: of a tile, or without the bank.
    if maps is None or seen.tiles is not None or f"share_{BANK}" in judged.columns:
        maps = coarse_maps(judged.patches, size, kept)
        shares = None if kept is None else coarse_shares(kept, size)
    if shares is not None:
        maps = np.where(shares > 0, maps, -np.inf)
    flat = maps.reshape(len(maps), -1).argmax(axis=1)
    rows, columns = np.unravel_index(flat, maps.shape[1:])
    return (np.stack([rows, columns], axis=1) + 0.5) / maps.shape[1:]

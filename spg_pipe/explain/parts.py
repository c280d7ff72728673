"""The components of an image score that are made of guides, as sums over atoms.

Upsampling, blur, the mean over pixels and standardising are linear once the pixels that count are
known. So an atom's part of an image score is its coefficient times its product with a weighted mean
of the image's unit tokens. The published rule's sigmoid is not linear: there a probability is ½ +
gain · log odds, with the gain of each patch that makes this exact (the rescale rule of DeepLIFT,
Shrikumar et al. 2017, with equal guides as the reference).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.spec import BackboneSpec, TokenKey
from spg_pipe.decision.kept import Kept, patch_shares
from spg_pipe.decision.maps import patch_weights
from spg_pipe.decision.model import MAP_TOP, Decision, top_weights
from spg_pipe.decision.rules import ALPHA, LME_TAU, TOP_SHARE, Published, Rule
from spg_pipe.detector.judge import Judged, tiles_of
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.guides.layer import LayerGuides, View
from spg_pipe.guides.model import TAU, detection_feature, lengths, unit

MAP_GUIDES = "map_guides"
"""Of the image score: the guides' part of the map where it is highest."""
DETECTION = "detection"
"""Of the image score: the detection feature along its own guides."""
Tokens = Mapping[TokenKey, Tensor]
Grids = Mapping[TokenKey, tuple[int, int]]


@dataclass(frozen=True)
class Part:
    """A component of B images that is made of guides."""

    offsets: np.ndarray
    """(B,) float64: what is left where all tokens are at right angles to all atoms."""
    of_layers: Mapping[str, np.ndarray]
    """Layer → (B, M) float64: contributions of the atoms of its guides."""
    everywhere: Mapping[str, np.ndarray] | None = None
    """Layer → (B, M): what they would be if all pixels of the map counted alike."""

    @property
    def total(self) -> np.ndarray:
        """(B,) the component."""
        sums = [values.sum(axis=1) for values in self.of_layers.values()]
        return self.offsets + np.sum(sums, axis=0)


def guides_parts(
    detector: Detector,
    tokens: Tokens,
    grids: Grids,
    seen: BackboneSpec,
    rule: Rule,
    judged: Judged,
    kept: Kept | None = None,
) -> dict[str, Part]:
    """The components made of guides; of images in tiles those of the tile that gave the score.

    `tokens` are as `with_kept_prefix` gives them; `judged` is what `judge` said of them, `kept`
    which pixels it counted.
    """
    if seen.tiles is None or isinstance(rule, Published):
        size, maps, shares = seen.preprocess.size, judged.maps, judged.kept
        view = _View(detector, tokens, grids, size, maps, shares, kept)
        if isinstance(rule, Published):
            return view.published(rule, judged)
        return view.parts(rule.decision)
    if judged.tiles is None:
        raise SpgError("Images in tiles are taken apart with what `judge` said of them.")
    each: list[dict[str, Part]] = []
    order: list[np.ndarray] = []
    for number, tile in enumerate(tiles_of(tokens, grids, seen, seen.tiles, kept)):
        images = np.flatnonzero(judged.tiles == number)
        if len(images):
            chosen = {key: batch[torch.from_numpy(images)] for key, batch in tile.tokens.items()}
            maps = None if judged.maps is None else judged.maps[images]
            shares = None if judged.kept is None else judged.kept[images]
            own = None if tile.kept is None else tile.kept.some(images)
            view = _View(detector, chosen, tile.grids, seen.tiles.size, maps, shares, own)
            each.append(view.parts(rule.decision))
            order.append(images)
    return _joined(each, np.argsort(np.concatenate(order)))


@dataclass(frozen=True)
class _View:
    """Tokens of images as a whole, or of one tile of each."""

    detector: Detector
    tokens: Tokens
    grids: Grids
    size: int
    maps: np.ndarray | None
    shares: np.ndarray | None
    """How much each pixel of the maps counts."""
    kept: Kept | None

    def parts(self, decision: Decision) -> dict[str, Part]:
        parts = {}
        if MAP_TOP in decision.terms and decision.map_weights.guides and self.maps is not None:
            parts[MAP_GUIDES] = self._map_guides(decision, self.maps)
        if DETECTION in decision.terms:
            parts[DETECTION] = self._detection(decision)
        return parts

    def _map_guides(self, decision: Decision, maps: np.ndarray) -> Part:
        term = decision.terms[MAP_TOP]
        share = term.weight / term.deviation
        pixels = share * top_weights(maps, decision.top_share, self.shares)
        offsets = np.full(len(maps), -share * term.mean)
        of_layers: dict[str, np.ndarray] = {}
        everywhere: dict[str, np.ndarray] = {}
        for key, weights, alike, batch in self._weighted(pixels):
            scale = decision.scales[key.layer]["guides"]
            gain = decision.map_weights.guides / scale.deviation
            offsets -= gain * scale.mean * weights.sum(axis=1)
            sides = gain * _sides(self.detector, key, "patches", False)
            _add(of_layers, key.layer, _pooled(batch[:, 1:], weights) @ sides)
            _add(everywhere, key.layer, _pooled_all(batch[:, 1:], alike) @ sides)
        return Part(offsets, of_layers, everywhere)

    def _detection(self, decision: Decision) -> Part:
        term, view = decision.terms[DETECTION], self.detector.record.detection
        share = term.weight / term.deviation
        scales = {key: decision.scales[key.layer].get(f"image_{DETECTION}") for key in self.tokens}
        held = {key: scale for key, scale in scales.items() if scale is not None}
        images = len(next(iter(self.tokens.values())))
        offsets = np.full(images, -share * term.mean)
        of_layers: dict[str, np.ndarray] = {}
        for key, scale in held.items():
            gain = share / (len(held) * scale.deviation)
            offsets -= gain * scale.mean
            feature = unit_tokens(self._feature(key))
            _add(of_layers, key.layer, gain * feature @ _sides(self.detector, key, view, False))
        return Part(offsets, of_layers)

    def published(self, rule: Published, judged: Judged) -> dict[str, Part]:
        """Of the rule `published`: the map's part, the detection feature's, or both."""
        parts, score = {}, rule.image_score
        if score != "cls" and self.maps is not None:
            pixels = _pixels(self.maps, score, self.shares)
            if score == "mix":
                pixels = pixels * (1 - ALPHA)
            offsets = pixels.sum(axis=(1, 2)) / 2
            if score == "log_mean_exp":  # what the curve lies away from its tangent
                offsets = judged.columns["score"] - (pixels * (self.maps - 0.5)).sum(axis=(1, 2))
            of_layers: dict[str, np.ndarray] = {}
            everywhere: dict[str, np.ndarray] = {}
            for key, weights, alike, batch in self._weighted(pixels):
                gains = gains_of(self.detector, key, batch[:, 1:], "patches")
                sides = _sides(self.detector, key, "patches", True)
                _add(of_layers, key.layer, _pooled(batch[:, 1:], weights * gains) @ sides)
                _add(everywhere, key.layer, _pooled_all(batch[:, 1:], alike * gains) @ sides)
            parts[MAP_GUIDES] = Part(offsets, of_layers, everywhere)
        if score in ("cls", "mix"):
            parts[DETECTION] = self._published_detection(ALPHA if score == "mix" else 1.0)
        return parts

    def _published_detection(self, share: float) -> Part:
        view, of_layers = self.detector.record.detection, dict[str, np.ndarray]()
        for key in self.tokens:
            if view in self.detector.layers[key.layer].pairs:
                feature = self._feature(key)
                gains = gains_of(self.detector, key, feature, view)
                pooled = share / len(self.tokens) * gains[:, None] * unit_tokens(feature)
                _add(of_layers, key.layer, pooled @ _sides(self.detector, key, view, True))
        images = len(next(iter(self.tokens.values())))
        return Part(np.full(images, share / 2), of_layers)

    def _feature(self, key: TokenKey) -> Tensor:
        """(B, D): what the guides of whole images see."""
        kept = patch_shares(self.kept, self.grids[key])
        return detection_feature(self.tokens[key], self.detector.record.detection, kept=kept)

    def _weighted(
        self, pixels: np.ndarray
    ) -> Iterator[tuple[TokenKey, np.ndarray, np.ndarray, Tensor]]:
        """Each key with its tokens, and what its patches count in weighted pixels (B, H, W).

        The latter twice, (B, N): as weighted, and with the same sum spread over all pixels that
        count.
        """
        sums = pixels.sum(axis=(1, 2), keepdims=True)
        counts = np.ones_like(pixels) if self.shares is None else self.shares.astype(np.float64)
        spread = counts * (sums / counts.sum(axis=(1, 2), keepdims=True))
        shapes = {key.name: self.grids[key] for key in self.tokens}
        weights, alike = (
            patch_weights(each, shapes, self.size, kept=self.kept) for each in (pixels, spread)
        )
        for key, batch in self.tokens.items():
            rows = (len(batch), -1)
            yield key, weights[key.name].reshape(rows), alike[key.name].reshape(rows), batch


def _pixels(maps: np.ndarray, score: str, shares: np.ndarray | None) -> np.ndarray:
    """Weights (B, H, W) of the pixels that a published image score is made from; sum 1.

    `shares` (B, H, W): how much each pixel counts.
    """
    if score == "top_mean":
        return top_weights(maps, TOP_SHARE, shares)
    counts = np.ones_like(maps) if shares is None else shares
    maps = np.where(counts > 0, maps, -np.inf)
    if score == "log_mean_exp":
        flat = maps.reshape(len(maps), -1).astype(np.float64)
        raised = np.exp((flat - flat.max(axis=1, keepdims=True)) / LME_TAU)
        raised *= counts.reshape(flat.shape)
        return (raised / raised.sum(axis=1, keepdims=True)).reshape(maps.shape)
    highest = maps.reshape(len(maps), -1).argmax(axis=1)
    weights = np.zeros((len(maps), maps[0].size))
    weights[np.arange(len(maps)), highest] = 1
    return weights.reshape(maps.shape)


def gains_of(detector: Detector, key: TokenKey, tokens: Tensor, view: View) -> np.ndarray:
    """What a probability is above ½ for each unit of log odds, of tokens (…, D): (…) float64."""
    guides = detector.layers[key.layer]
    coefficients = coefficients_of(detector, guides, view, published=True)
    odds = unit_tokens(tokens) @ (coefficients @ guides.atoms.double()).numpy()
    near = np.abs(odds) < 1e-6  # where the quotient would be 0/0; the sigmoid's slope at 0 is ¼
    return np.where(near, 0.25, (1 / (1 + np.exp(-odds)) - 0.5) / np.where(near, 1, odds))


def coefficients_of(
    detector: Detector, guides: LayerGuides, view: View, *, published: bool
) -> Tensor:
    """(M,) float64 of the direction that a rule multiplies unit tokens with."""
    coefficients = guides.coefficients(view, as_cosines=not detector.contrast)
    return coefficients / TAU if published and detector.contrast else coefficients


def _sides(detector: Detector, key: TokenKey, view: View, published: bool) -> np.ndarray:
    """(D, M) float64: each atom of a layer, as long as its coefficient."""
    guides = detector.layers[key.layer]
    coefficients = coefficients_of(detector, guides, view, published=published)
    return (coefficients[:, None] * guides.atoms.double()).t().numpy()


def _pooled(patches: Tensor, weights: np.ndarray) -> np.ndarray:
    """Σ weight · unit token, (B, D) float64, of patches (B, N, D); most weights are 0."""
    pooled = np.empty((len(patches), patches.shape[2]))
    for image, row in enumerate(weights):
        used = np.flatnonzero(row)
        pooled[image] = row[used] @ unit_tokens(patches[image, torch.from_numpy(used)])
    return pooled


def _pooled_all(patches: Tensor, weights: np.ndarray) -> np.ndarray:
    """The same where all weights count: summed in float32, for a mean that nothing adds up to."""
    scaled = torch.from_numpy(weights).float() / lengths(patches.cpu())
    return np.asarray((scaled[:, None] @ patches.cpu())[:, 0].double().numpy())


def unit_tokens(tokens: Tensor) -> np.ndarray:
    """Tokens (…, D) float32 of length 1, float64."""
    return np.asarray(unit(tokens.cpu().double()).numpy())


def _add(of_layers: dict[str, np.ndarray], layer: str, values: np.ndarray) -> None:
    """Add what another side of the same layer contributes."""
    of_layers[layer] = of_layers[layer] + values if layer in of_layers else values


def _joined(each: Sequence[Mapping[str, Part]], back: np.ndarray) -> dict[str, Part]:
    """Parts of some images each, as parts of all, in the order `back`."""

    def together(of_layers: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {
            layer: np.concatenate([values[layer] for values in of_layers])[back]
            for layer in of_layers[0]
        }

    joined = {}
    for name in each[0]:
        parts = [of_images[name] for of_images in each]
        offsets = np.concatenate([part.offsets for part in parts])[back]
        alike = [part.everywhere for part in parts if part.everywhere is not None]
        of_layers = together([part.of_layers for part in parts])
        joined[name] = Part(offsets, of_layers, together(alike) if alike else None)
    return joined

"""A detector as one module: an image of any size in, its map, score and decision out.

It is traced once and then run by others (ONNX Runtime, OpenVINO, `torch.export`), so it holds no
NumPy and no branch on values. What can be shared with `predict` is; what remains here is written so
that every runtime can do it. `deploy.export` compares both.
"""

import torch
from torch import Tensor, nn

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.bank.fitted import FittedBank
from spg_pipe.bank.fusion import confirmed
from spg_pipe.decision.components import REACH, Components
from spg_pipe.decision.maps import added_up, finished
from spg_pipe.decision.model import COARSE, MAP_TOP, Decision
from spg_pipe.decision.rules import ALPHA, LME_TAU, TOP_SHARE, Published
from spg_pipe.deploy.resize import resized
from spg_pipe.guides.model import to_grid, unit
from spg_pipe.predict.predictor import Predictor, joined_tokens

OUTPUTS = ("map", "score", "decision")
"""Names of the graph's outputs; without a threshold there is no decision."""


class Graph(nn.Module):
    """What `Predictor` says of one image.

    Parameters
    ----------
    predictor : Predictor
        On the CPU, without tiles, in float32.
    threshold : float, optional
        An image is anomalous if its score is above it.
    """

    def __init__(self, predictor: Predictor, threshold: float | None) -> None:
        super().__init__()
        self._predictor, self._threshold = predictor, threshold
        bank = predictor.bank
        self._banks = bank.memory.kept if bank else {}
        _ = predictor.detector.sides  # made here: a trace cannot look at values

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `OUTPUTS`.

        Parameters
        ----------
        image : (1, H, W, 3) uint8

        Returns
        -------
        map : (H, W) float32 in [0, 1]
        score : (1,) float32
        decision : (1,) bool
        """
        predictor, preprocess = self._predictor, self._predictor.backbone.spec.preprocess
        tokens, grids = joined_tokens(predictor.backbone(resized(image, preprocess)))
        patches, score = self._judged(tokens, grids)
        square = _mean_map(patches, preprocess.size, preprocess.size)
        if predictor.log_odds:
            square = finished(square)
        elif isinstance(rule := predictor.detector.record.rule, Published):
            score = _published_score(square, score, rule)
        pixels = _at_size(square.float(), image.shape[1], image.shape[2]).clamp(0, 1)
        decided = () if self._threshold is None else (score > self._threshold,)
        return pixels, score.float(), *decided

    def _judged(
        self, tokens: dict[str, Tensor], grids: dict[str, tuple[int, int]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Layer → (h, w) values of patches, and the image's score (1,) float64 (of the published
        rule its CLS probability)."""
        predictor = self._predictor
        detector, bank = predictor.detector, predictor.bank
        footing = bank.record.footing if bank else None
        if bank and (predictor.alone or footing is None):
            return self._away(bank, tokens)
        keyed = {TokenKey(layer): each for layer, each in tokens.items()}
        shapes = {TokenKey(layer): grid for layer, grid in grids.items()}
        if predictor.log_odds:
            measured, parts = detector.measured(keyed, shapes, away=self_distance)
            odds = {key.layer: values[0] for key, values in measured.items()}
            score = self._score(odds, {key.layer: part for key, part in parts.items()})
        else:
            probabilities, score = detector.probabilities(keyed, shapes)
            odds = {key.layer: values[0] for key, values in probabilities.items()}
        if bank is None or footing is None:
            return odds, score
        away, top = self._away(bank, tokens)
        fused = {
            layer: confirmed(each, odds[layer], *footing.levels[layer])
            for layer, each in away.items()
        }
        return fused, score + footing.weight * top

    def _score(self, odds: dict[str, Tensor], parts: dict[str, Components]) -> Tensor:
        """The additive decision's (1,) float64."""
        decision = self._predictor.detector.decision
        values = _image_values(decision, parts)
        if MAP_TOP in decision.terms:
            values[MAP_TOP] = self._map_top(odds, decision.top_share)
        score = torch.full((1,), decision.bias, dtype=torch.float64)
        for name, term in decision.terms.items():
            score = score + term.weight * (values[name] - term.mean) / term.deviation
        return score

    def _away(
        self, bank: FittedBank, tokens: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """`MemoryBank.distances`: layer → (h, w), and the mean (1,) float64 of their highest."""
        memory, patches = bank.memory, {}
        for layer, grid in memory.grids.items():
            products = unit(tokens[layer][0, 1:]) @ self._banks[layer].t()
            highest = products.topk(memory.params.neighbours, dim=1).values
            scale = memory.scales[layer]
            away = (1 - highest.mean(dim=1) - scale.mean) / scale.deviation
            patches[layer] = to_grid(away[None], grid)[0]
        return patches, self._map_top(patches, memory.params.top_share) - memory.map_top

    def _map_top(self, patches: dict[str, Tensor], share: float) -> Tensor:
        size = self._predictor.backbone.spec.preprocess.size
        return _top_mean(_mean_map(patches, size, max(1, size // COARSE)).float(), share)


def self_distance(coordinates: Tensor, grid: tuple[int, int], kept: Tensor | None = None) -> Tensor:
    """`decision.components.self_distance` in one product: (B, N, m) → (B, N); all patches count."""
    h, w = grid
    reach = min(REACH, max(h, w) // 2 - 1)
    if reach < 0:
        return coordinates.new_zeros(coordinates.shape[:2])
    half = coordinates.square().sum(dim=2) / 2
    alike = coordinates @ coordinates.transpose(1, 2) - half[:, None]
    down, right = torch.arange(h * w) // w, torch.arange(h * w) % w
    apart = torch.maximum((down[:, None] - down).abs(), (right[:, None] - right).abs())
    lowest = torch.finfo(torch.float32).min
    nearest = alike.masked_fill(apart <= reach, lowest).amax(dim=2)
    return (half - nearest).clamp_min(0)


def _image_values(decision: Decision, parts: dict[str, Components]) -> dict[str, Tensor]:
    """`Decision.image_values`, each (1,) float64."""
    standard: dict[str, list[Tensor]] = {}
    for layer, raw in parts.items():
        values = {"self_distance": _top_mean(raw.self_distance, decision.top_share)}
        if raw.detection is not None:
            values["detection"] = raw.detection[:, 0].double()
        for name, value in values.items():
            scale = decision.scales[layer].get(f"image_{name}")
            if scale is not None:
                standard.setdefault(name, []).append((value - scale.mean) / scale.deviation)
    return {name: torch.stack(each).mean(dim=0) for name, each in standard.items()}


def _mean_map(patches: dict[str, Tensor], size: int, at: int) -> Tensor:
    """(at, at) float64 of layer → (h, w)."""
    fields = [values.double() for values in patches.values()]
    return added_up(fields, size, (at, at)) / len(fields)


def _top_mean(values: Tensor, share: float) -> Tensor:
    """`decision.model.top_mean` of one image's values of any shape: (1,) float64."""
    flat = values.flatten()
    count = max(1, int(share * flat.shape[0]))
    return flat.topk(count, sorted=False).values.mean().double()[None]


def _published_score(square: Tensor, cls: Tensor, rule: Published) -> Tensor:
    """`decision.rules.image_scores` of a map (S, S) and a CLS probability (1,) float64."""
    flat = square.float().flatten()
    highest = flat.amax(dim=0).double()[None]
    if rule.image_score == "max":
        return highest
    if rule.image_score == "cls":
        return cls
    if rule.image_score == "top_mean":
        return _top_mean(flat, TOP_SHARE)
    if rule.image_score == "log_mean_exp":
        spread = ((flat.double() - highest) / LME_TAU).exp().mean()
        return highest + LME_TAU * spread.log()
    return ALPHA * cls + (1 - ALPHA) * highest


def _at_size(square: Tensor, height: int, width: int) -> Tensor:
    """`decision.maps.resize_maps` of one map: (S, S) → (H, W)."""
    # Exporters turn torch's own into an operation that takes another pixel where H or W is 1.
    low, high, share = _neighbours(len(square), height)
    rows = square[low] * (1 - share)[:, None] + square[high] * share[:, None]
    low, high, share = _neighbours(len(square), width)
    return rows[:, low] * (1 - share) + rows[:, high] * share


def _neighbours(size: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two cells (pixels,) that each pixel lies between, and the share of the second."""
    step = size / torch.arange(pixels, pixels + 1).float()
    places = ((torch.arange(pixels) + 0.5) * step - 0.5).clamp(0, size - 1)
    low = places.floor()
    return low.long(), (low + 1).clamp(max=size - 1).long(), places - low

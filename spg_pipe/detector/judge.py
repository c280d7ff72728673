"""A detector on a batch of tokens: what it says of patches and images, by either rule."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.base import stand_in
from spg_pipe.backbones.spec import BackboneSpec, Tiles, TokenKey
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.decision.model import MAP_TOP, Decision, coarse_maps, top_mean
from spg_pipe.decision.rules import Published, Rule, image_scores
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError

Patches = dict[str, Tensor]
"""Name of tokens → (B, h, w) float32 on the CPU: probabilities, or log odds."""


@dataclass(frozen=True)
class Judged:
    """What a detector says of a batch of images."""

    patches: Patches
    columns: dict[str, np.ndarray]
    """`score` (B,) and what it is made of: with rule `published` score_cls and score_map_max, with
    rule `additive` a share_… for each component, which add up to the score less its bias."""
    maps: np.ndarray | None = None
    """(B, H, W) float32 that the image scores are made from: with rule `published` the blurred maps
    at S×S, with rule `additive` the blurred log odds at a quarter of the size (of an image in tiles
    those of the tile with the highest score), if the decision looks at them."""
    tiles: np.ndarray | None = None
    """(B,) int: of an image in tiles the number of the tile with the highest score."""

    def __post_init__(self) -> None:
        values = (self.columns["score"], *self.patches.values())
        if not all(np.isfinite(np.asarray(value)).all() for value in values):
            raise SpgError(
                "Scores came out that are no numbers: the tokens, the backbone's weights or the "
                "detector are damaged. `spg-pipe verify STORE` checks a store."
            )


def judge(
    detector: Detector,
    tokens: Mapping[str, Tensor],
    grids: Mapping[str, tuple[int, int]],
    seen: BackboneSpec,
    rule: Rule,
) -> Judged:
    """Score a batch of images by a rule.

    Of an image in tiles the additive rule judges each tile alone, as the detector learnt to judge
    single views, and the image is as anomalous as its worst tile: a defect of a few pixels is lost
    in the mean of a large image. Patches are those of the image as a whole.

    Parameters
    ----------
    tokens : dict of name → (B, 1 + N, D) float32
    grids : dict of name → (h, w)
    seen : BackboneSpec
        How the tokens were made: the size of the maps, and the tiles.

    Raises
    ------
    SpgError
        If the rule is `additive` and the detector has no decision, or a score is not finite.
    """
    size = seen.preprocess.size
    keyed, shapes = seen.keyed(tokens), seen.keyed(grids)
    with torch.inference_mode():
        if isinstance(rule, Published):
            probabilities, cls = detector.probabilities(keyed, shapes)
            return _published(_by_name(probabilities), cls.cpu().numpy(), size, rule)
        odds, values = detector.log_odds(keyed, shapes)
        patches = _by_name(odds)
        if seen.tiles is None:
            return _add_up(rule.decision, patches, values, size)
        tiles = []
        for tile in tiles_of(keyed, shapes, seen, seen.tiles):
            odds, values = detector.log_odds(*tile)
            tiles.append(_add_up(rule.decision, _by_name(odds), values, seen.tiles.size))
        return _worst(patches, tiles)


def _by_name(patches: Mapping[TokenKey, Tensor]) -> Patches:
    return {key.name: values.cpu() for key, values in patches.items()}


def _published(patches: Patches, cls: np.ndarray, size: int, rule: Published) -> Judged:
    maps = anomaly_maps(patches, size)
    columns = {
        "score": image_scores(maps, cls, rule.image_score),
        "score_cls": cls,
        "score_map_max": maps.reshape(len(maps), -1).max(axis=1),
    }
    return Judged(patches, columns, maps)


def _add_up(
    decision: Decision, patches: Patches, values: dict[str, np.ndarray], size: int
) -> Judged:
    maps = coarse_maps(patches, size) if MAP_TOP in decision.terms else None
    if maps is not None:
        values = values | {MAP_TOP: top_mean(maps, decision.top_share)}
    shares = decision.shares(values)
    total = decision.bias + np.sum(list(shares.values()), axis=0)
    columns = {f"share_{name}": share for name, share in shares.items()}
    return Judged(patches, {"score": total, **columns}, maps)


def _worst(patches: Patches, tiles: list[Judged]) -> Judged:
    """Each image's columns and map are those of the tile with the highest score."""
    worst = np.argmax([tile.columns["score"] for tile in tiles], axis=0)
    images = np.arange(len(worst))
    columns = {
        name: np.stack([tile.columns[name] for tile in tiles])[worst, images]
        for name in tiles[0].columns
    }
    maps = [tile.maps for tile in tiles if tile.maps is not None]
    return Judged(patches, columns, np.stack(maps)[worst, images] if maps else None, worst)


def tiles_of(
    tokens: Mapping[TokenKey, Tensor],
    grids: Mapping[TokenKey, tuple[int, int]],
    seen: BackboneSpec,
    tiles: Tiles,
) -> Iterator[tuple[dict[TokenKey, Tensor], dict[TokenKey, tuple[int, int]]]]:
    """Tokens and grids of each tile alone, side after side, row after row.

    A prefix token that stands for the model's own is made anew; CLS is the whole image's.
    """

    def cells(start: int, side: int, count: int) -> slice:
        pixels = side // count
        return slice(start // pixels, (start + tiles.size) // pixels)

    for side in tiles.sides:
        starts = tiles.starts(side, seen.patch_size)
        for top, left in product(starts, starts):
            parts, shapes = {}, {}
            for key in seen.token_keys:
                if key.side not in (None, side):
                    continue
                rows, columns = grids[key]
                patches = tokens[key][:, 1:].unflatten(1, (rows, columns))
                part = patches[:, cells(top, side, rows), cells(left, side, columns)]
                shapes[key] = (part.shape[1], part.shape[2])
                flat = part.flatten(1, 2)
                cls = seen.prefix == "cls"
                first = tokens[key][:, :1] if cls else stand_in(flat, seen.prefix)
                parts[key] = torch.cat([first, flat], dim=1)
            yield parts, shapes

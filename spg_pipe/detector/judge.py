"""A detector on a batch of tokens: what it says of patches and images, by either rule."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.base import stand_in
from spg_pipe.backbones.spec import BackboneSpec, Tiles, TokenKey
from spg_pipe.decision.kept import Kept, patch_shares, whole
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.decision.model import MAP_TOP, Decision, coarse_maps, coarse_shares, top_mean
from spg_pipe.decision.rules import Published, Rule, image_scores
from spg_pipe.detector.model import Detector, Grids
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
    kept: np.ndarray | None = None
    """(B, H, W) how much each pixel of `maps` counts; None: all alike."""

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
    kept: Kept | None = None,
) -> Judged:
    """Score a batch of images by a rule.

    Of an image in tiles the additive rule judges each tile alone, as the detector learnt to judge
    single views, and the image is as anomalous as its worst tile: a defect of a few pixels is lost
    in the mean of a large image. Patches are those of the image as a whole. An `SpgError` if the
    rule is `additive` and the detector has no decision, or a score is not finite.

    Parameters
    ----------
    tokens : dict of name → (B, 1 + N, D) float32
    grids : dict of name → (h, w)
    seen : BackboneSpec
        How the tokens were made: the size of the maps, and the tiles.
    kept : Kept, optional
        Which pixels count; something must of every image. A tile that is wholly ignored is never
        the worst.
    """
    size = seen.preprocess.size
    keyed, shapes = seen.keyed(tokens), seen.keyed(grids)
    with torch.inference_mode():
        keyed = with_kept_prefix(keyed, shapes, seen, kept)
        if isinstance(rule, Published):
            probabilities, cls = detector.probabilities(keyed, shapes, kept=kept)
            return _published(_by_name(probabilities), cls.cpu().numpy(), size, rule, kept)
        odds, values = detector.log_odds(keyed, shapes, kept)
        patches = _by_name(odds)
        if seen.tiles is None:
            return _add_up(rule.decision, patches, values, size, kept)
        tiles, nothing = [], []
        for tile in tiles_of(keyed, shapes, seen, seen.tiles, kept):
            odds, values = detector.log_odds(*tile)
            own = _add_up(rule.decision, _by_name(odds), values, seen.tiles.size, tile.kept)
            tiles.append(own)
            nothing.append(tile.kept.nothing if tile.kept else np.zeros(1, bool))
        return _worst(patches, tiles, np.array(nothing))


def with_kept_prefix(
    tokens: Mapping[TokenKey, Tensor], grids: Grids, seen: BackboneSpec, kept: Kept | None
) -> dict[TokenKey, Tensor]:
    """Tokens whose prefix, where it is the mean patch token, is that of the patches that count.

    The model's own CLS stays: it has seen the whole image.
    """
    if kept is None or seen.prefix != "mean":
        return dict(tokens)
    made, unmasked = {}, whole(kept.shares)[:, None, None]
    for key, batch in tokens.items():
        first = stand_in(batch[:, 1:], seen.prefix, patch_shares(kept, grids[key]))
        first = torch.where(unmasked.to(batch.device), batch[:, :1], first)
        made[key] = torch.cat([first, batch[:, 1:]], dim=1)
    return made


def _by_name(patches: Mapping[TokenKey, Tensor]) -> Patches:
    return {key.name: values.cpu() for key, values in patches.items()}


def _published(
    patches: Patches, cls: np.ndarray, size: int, rule: Published, kept: Kept | None
) -> Judged:
    maps = anomaly_maps(patches, size, kept=kept)
    shares = None if kept is None else kept.shares.numpy()
    columns = {
        "score": image_scores(maps, cls, rule.image_score, kept=shares),
        "score_cls": cls,
        "score_map_max": image_scores(maps, cls, "max", kept=shares),
    }
    return Judged(patches, columns, maps, kept=shares)


def _add_up(
    decision: Decision,
    patches: Patches,
    values: dict[str, np.ndarray],
    size: int,
    kept: Kept | None,
) -> Judged:
    maps = coarse_maps(patches, size, kept) if MAP_TOP in decision.terms else None
    counts = None if kept is None or maps is None else coarse_shares(kept, size)
    if maps is not None:
        values = values | {MAP_TOP: top_mean(maps, decision.top_share, counts)}
    shares = decision.shares(values)
    total = decision.bias + np.sum(list(shares.values()), axis=0)
    columns = {f"share_{name}": share for name, share in shares.items()}
    return Judged(patches, {"score": total, **columns}, maps, kept=counts)


def _worst(patches: Patches, tiles: list[Judged], nothing: np.ndarray) -> Judged:
    """Each image's columns and map are those of the tile with the highest score.

    `nothing` (tiles, B) or (tiles, 1): the tile is wholly ignored.
    """
    scores = np.array([tile.columns["score"] for tile in tiles])
    worst = np.argmax(np.where(nothing, -np.inf, scores), axis=0)
    images = np.arange(len(worst))
    columns = {
        name: np.stack([tile.columns[name] for tile in tiles])[worst, images]
        for name in tiles[0].columns
    }
    maps = [tile.maps for tile in tiles if tile.maps is not None]
    kept = [tile.kept for tile in tiles if tile.kept is not None]
    chosen = [np.stack(each)[worst, images] if each else None for each in (maps, kept)]
    return Judged(patches, columns, chosen[0], worst, chosen[1])


class Tile(NamedTuple):
    """Tokens of one tile of each image."""

    tokens: dict[TokenKey, Tensor]
    grids: dict[TokenKey, tuple[int, int]]
    kept: Kept | None


def tiles_of(
    tokens: Mapping[TokenKey, Tensor],
    grids: Mapping[TokenKey, tuple[int, int]],
    seen: BackboneSpec,
    tiles: Tiles,
    kept: Kept | None = None,
) -> Iterator[Tile]:
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
            own = None if kept is None else kept.tile(side, top, left, tiles.size)
            for key in seen.token_keys:
                if key.side not in (None, side):
                    continue
                rows, columns = grids[key]
                patches = tokens[key][:, 1:].unflatten(1, (rows, columns))
                part = patches[:, cells(top, side, rows), cells(left, side, columns)]
                shapes[key] = (part.shape[1], part.shape[2])
                flat = part.flatten(1, 2)
                cls = seen.prefix == "cls"
                counts = patch_shares(own, shapes[key])
                first = tokens[key][:, :1] if cls else stand_in(flat, seen.prefix, counts)
                parts[key] = torch.cat([first, flat], dim=1)
            yield Tile(parts, shapes, own)

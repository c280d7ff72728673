"""Intervention: a defect is painted on a normal image; do the named atoms respond there?

Pairs differ in one painted defect and its mask, so that what changes is what the defect does: a
patch's token elsewhere changes as well, as far as the backbone spreads it. An atom answers for a
defect if its part of the map changes inside the mask and not outside.
"""

import zlib
from collections.abc import Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.backbones.base import Backbone, forward
from spg_pipe.datasets.manifest import LABEL_NORMAL
from spg_pipe.datasets.paint.pasted import LEAST_SIDE, PAINTERS, canvas_of, paint
from spg_pipe.errors import SpgError
from spg_pipe.explain.codes import Code
from spg_pipe.guides.model import unit
from spg_pipe.images.preprocess import preprocess, resize_mask
from spg_pipe.images.reading import read_image
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.features import load_backbone
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.audit_case import Case, matched
from spg_pipe.study.audit_dictionaries import RANDOM
from spg_pipe.study.audit_tables import NAMED, Row

CLAIM = "intervention"
IMAGES = 6
"""Normal images of each target that get one defect of each kind."""
OTHERS = "other atoms"
NAMED_LATENTS, OTHER_LATENTS = "latents of the guides", "other latents"
GUIDES = "the guides"
_AT_ONCE = 8


class Pairs(NamedTuple):
    """Tokens of a layer without and with each of P defects."""

    before: Tensor
    """(P, N, D) float32"""
    after: Tensor
    """(P, N, D)"""
    painted: Tensor
    """(P, N) float32: share of each patch's pixels that are painted."""


def intervention(case: Case) -> Iterator[Row]:
    """What the atoms of every dictionary but `RANDOM`, matched to the case's direction, say.

    Targets whose photographs are not here are left out.
    """
    backbone = cache(partial(load_backbone, case.run))
    for target, store in case.targets.items():
        if not find_dataset(case.run.params, target).root.is_dir():
            continue
        pairs = painted_pairs(case.run, target, store, backbone(), case.seed)
        for name in [n for n in case.dictionaries if n != RANDOM and pairs]:
            each = [_responses(case, name, layer, of_layer) for layer, of_layer in pairs.items()]
            for variant, figure in each[0]:
                value = float(np.mean([found[variant, figure] for found in each]))
                row = case.row(CLAIM, target, name)
                yield row(variant, case.run.params.guides.atoms, figure, value)


def painted_pairs(
    run: RecipeRun, target: str, store: FeatureStore, backbone: Backbone, seed: int
) -> dict[str, Pairs]:
    """Layer → pairs on some normal images of a target; empty if it has none that can be read."""
    root, spec = find_dataset(run.params, target).root, store.spec.backbone.preprocess
    normal = np.flatnonzero(store.array("label") == LABEL_NORMAL)
    rng = np.random.default_rng(seed)
    before, after, masks = [], [], []
    for row in normal[rng.permutation(len(normal))[:IMAGES]].tolist():
        path = str(store.table["path"].iloc[row])
        try:
            levels = read_image(root / path, exif=store.spec.exif, white=store.spec.white)
        except SpgError:
            continue
        if min(levels.shape[:2]) < LEAST_SIDE:
            continue
        before.append(preprocess(levels, spec))
        for number, kind in enumerate(PAINTERS):
            own = np.random.default_rng([seed, number, zlib.crc32(path.encode())])
            defective, mask = paint(canvas_of(levels), kind, own)
            after.append(preprocess(defective, spec))
            masks.append(resize_mask(mask, spec.size))
    if not masks:
        return {}
    with torch.inference_mode():
        batches = (torch.from_numpy(np.stack(images)) for images in (before, after))
        plain, painted = (forward(backbone, batch, _AT_ONCE) for batch in batches)
    pixels = torch.from_numpy(np.stack(masks)).float()[:, None]
    return {
        layer: Pairs(
            plain[layer].patches.float().cpu().repeat_interleave(len(PAINTERS), dim=0),
            painted[layer].patches.float().cpu(),
            F.adaptive_avg_pool2d(pixels, store.spec.layers[layer].grid).flatten(1),
        )
        for layer in store.layers
    }


def _responses(case: Case, name: str, layer: str, pairs: Pairs) -> dict[tuple[str, str], float]:
    """Figures of one layer: of named atoms and latents, of as many others, of their sum."""
    saes, count = case.dictionaries[name], case.run.params.guides.atoms
    (named, parts), *_ = matched(case.gaps[layer, "patches"], saes, layer, [count])
    atoms = saes.layers[layer].atoms.detach()
    free = ~saes.dead[layer]
    free[named] = False
    left = torch.nonzero(free)[:, 0].numpy()
    drawn = np.random.default_rng([case.seed, *map(ord, name + layer)])
    others = torch.from_numpy(drawn.permutation(left)[: len(named)])
    moved = unit(pairs.after) - unit(pairs.before)
    used = torch.cat([named, others])
    latents = _latent_changes(pairs, case.code(name, layer), used, len(atoms))
    changes = {
        NAMED: moved @ parts.t(),
        OTHERS: moved @ atoms[others].t(),
        NAMED_LATENTS: latents[..., : len(named)],
        OTHER_LATENTS: latents[..., len(named) :],
    }
    painted, found = pairs.painted, dict[tuple[str, str], float]()
    for what, values in changes.items():
        size = values.abs().flatten(0, 1)
        found[what, "ratio"] = _ratio(size, painted.flatten())
        found[what, "ap"] = _mean_precision(size, painted.flatten())
    toward = changes[NAMED].sum(2).flatten()[:, None]
    found[NAMED, "toward"] = _toward(changes[NAMED].flatten(0, 1), painted.flatten())
    found[GUIDES, "toward"] = _toward(toward, painted.flatten())
    found[GUIDES, "ratio"] = _ratio(toward.abs(), painted.flatten())
    found[GUIDES, "ap"] = _mean_precision(toward, painted.flatten())
    for what in [*changes, GUIDES]:
        found[what, "base_rate"] = float(painted.mean())
    return found


def _latent_changes(pairs: Pairs, code: Code, chosen: Tensor, latents: int) -> Tensor:
    """(P, N, m) by how much the chosen latents' values change."""
    place = torch.full((latents,), -1)
    place[chosen] = torch.arange(len(chosen))
    values = []
    for tokens in (pairs.after, pairs.before):
        entries = code(tokens.flatten(0, 1))
        dense = torch.zeros(tokens[..., 0].numel(), len(chosen))
        used = place[entries.latent] >= 0
        dense[entries.token[used], place[entries.latent[used]]] = entries.value[used]
        values.append(dense.view(*tokens.shape[:2], -1))
    return values[0] - values[1]


def _ratio(size: Tensor, painted: Tensor) -> float:
    """How much larger |changes| (n, m) are inside masks than outside, all columns together."""
    inside = (size * painted[:, None]).sum() / painted.sum()
    outside = size[painted == 0].sum() / (painted == 0).sum()
    return float(inside / outside) if outside > 0 else float("nan")


def _toward(values: Tensor, painted: Tensor) -> float:
    """Share of what changes (n, m) inside masks that goes to the anomalous side; ½ by chance."""
    inside = values * painted[:, None]
    return float(inside.clamp_min(0).sum() / inside.abs().sum())


def _mean_precision(values: Tensor, painted: Tensor) -> float:
    """Mean over columns of the AP of values (n, m) as detectors of what was painted.

    As `weighted_precision`, of all columns at once; equal values count as one step.
    """
    ordered, order = values.sort(dim=0, descending=True)
    hits = painted[order].double().cumsum(0)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    count = torch.arange(1, len(values) + 1, dtype=torch.float64)[:, None]
    before = torch.where(last, hits, 0).cummax(0).values.roll(1, 0)
    before[0] = 0
    steps = torch.where(last, (hits - before) * hits / count, 0)
    return float(steps.sum(0).div(painted.sum()).mean())

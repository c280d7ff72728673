"""Do the goods say whether the guides help, and what do their own scores promise?

    python -m benchmarks.own_goods DETECTOR STORE.zarr STORE.zarr … [--goods 4 10] [--draws 5]

Of each target the good images of a draw make a bank; others are judged by it, alone and with the
guides. A line a target and number of goods: image AUROC and pixel AP of both (maps at a quarter of
the size), the bank's weight, the rank correlation of distances and guides over the goods' patches,
and of the other good images and of the defects the share that lies above all goods, and that lies
three deviations above their mean, with the guides.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from spg_pipe.bank.fitted import FittedBank, GoodImages, fit_bank
from spg_pipe.bank.normal_patches import tokens_of_store
from spg_pipe.bank.search import highest_products
from spg_pipe.decision.model import coarse_maps
from spg_pipe.detector.judge import Judged
from spg_pipe.detector.model import Detector
from spg_pipe.recipe.params import BankParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.held_out import coarse_pixels

FIGURES = (
    "AUROC alone",
    "AUROC fused",
    "AP alone",
    "AP fused",
    "weight",
    "correlation",
    "good above all",
    "defect above all",
    "good 3 dev.",
    "defect 3 dev.",
)


def judged_by(
    bank: FittedBank, detector: Detector, store: FeatureStore, rows: np.ndarray, *, alone: bool
) -> tuple[np.ndarray, Judged]:
    """Coarse maps (n, S/4, S/4) of some images, and what is said of them."""
    tokens_of, parts = tokens_of_store(store, rows), []
    for row in range(len(rows)):
        tokens, _ = tokens_of(np.array([row]))
        parts.append(bank.judge(tokens, detector, store.spec.backbone, alone=alone))
    patches = {k: torch.cat([part.patches[k] for part in parts]) for k in parts[0].patches}
    columns = {k: np.concatenate([part.columns[k] for part in parts]) for k in parts[0].columns}
    return coarse_maps(patches, store.image_size), Judged(patches, columns)


def correlation(
    bank: FittedBank, detector: Detector, store: FeatureStore, goods: np.ndarray
) -> float:
    """Spearman's, of the goods' patches: from the patches of the others, and their log odds."""
    found, tokens_of = [], tokens_of_store(store, goods)
    for good in range(len(goods)):
        tokens, grids = tokens_of(np.array([good]))
        seen = store.spec.backbone
        odds, _ = detector.log_odds(seen.keyed(tokens), seen.keyed(grids))
        for key, values in odds.items():
            kept, patches = bank.memory.kept[key.name], values.numel()
            own = slice(good * patches, (good + 1) * patches)
            near = highest_products(kept[own], kept, 1, without=own)
            found.append(spearmanr(-near.flatten(), values.flatten())[0])
    return float(np.mean(found))


def images_of(store: FeatureStore, rows: np.ndarray) -> GoodImages:
    """Of some images of a store."""
    files = [(str(path), "") for path in store.table["path"].iloc[rows]]
    return GoodImages(tokens_of_store(store, rows), files, store.spec.white)


def figures(
    detector: Detector, store: FeatureStore, goods: np.ndarray, rows: np.ndarray
) -> list[float]:
    """`FIGURES` of one draw: its good images and those that are judged."""
    bank = fit_bank(images_of(store, goods), detector, store.spec.backbone, BankParams())
    labels = store.array("label")[rows] == 1
    pixels = dict(coarse_pixels(store))
    masks = [pixels[row].reshape(-1) for row in rows if row in pixels]
    found: dict[str, float] = {"correlation": correlation(bank, detector, store, goods)}
    for name in ("alone", "fused"):
        maps, judged = judged_by(bank, detector, store, rows, alone=name == "alone")
        found[f"AUROC {name}"] = roc_auc_score(labels, judged.columns["score"])
        if len(masks) == len(rows):
            truth = np.concatenate(masks)
            found[f"AP {name}"] = average_precision_score(truth, maps.reshape(-1))
    above, far = judged.columns["normals_above"] == 0, judged.columns["deviation"] > 3
    found |= {"good above all": above[~labels].mean(), "defect above all": above[labels].mean()}
    found |= {"good 3 dev.": far[~labels].mean(), "defect 3 dev.": far[labels].mean()}
    found["weight"] = bank.record.footing.weight if bank.record.footing else np.nan
    return [float(found.get(name, np.nan)) for name in FIGURES]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("detector", type=Path)
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--goods", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument(
        "--images", type=int, default=150, help="judged images of a target, at most"
    )
    given = parser.parse_args()
    detector = Detector.load(given.detector)
    print("target", "goods", *FIGURES, sep=" | ")
    for path in given.stores:
        store = FeatureStore(path)
        labels = store.array("label")
        good, bad = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
        for count in given.goods:
            draws = []
            for draw in range(given.draws):
                rng = np.random.default_rng([draw, count])
                goods = np.sort(rng.choice(good, count, replace=False))
                half = given.images // 2
                others = np.setdiff1d(good, goods)
                some = [
                    rng.choice(each, min(half, len(each)), replace=False) for each in (others, bad)
                ]
                draws.append(figures(detector, store, goods, np.sort(np.concatenate(some))))
            means = np.mean(draws, axis=0)
            print(
                store.spec.dataset,
                count,
                *(f"{value:.3f}" for value in means),
                sep=" | ",
                flush=True,
            )


if __name__ == "__main__":
    main()

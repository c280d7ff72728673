"""An atlas folder written by hand: its tables hold what the page must be able to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from spg_pipe.detector.model import Detector
from spg_pipe.explain.atlas import Atlas
from spg_pipe.explain.atlas_files import AtlasRecord, write_tables
from spg_pipe.explain.factors import Factors
from spg_pipe.report.atlas import write_page

LATENTS = 32
NEAREST = 3


def atlas_folder(
    detector: Detector, folder: Path, categories: tuple[str, ...], *, every: bool = False
) -> Atlas:
    """Write the tables, crops/ and index.html for a detector over 32 latents."""
    (folder / "crops").mkdir(parents=True)
    atlas = _atlas(detector, folder, categories, every=every)
    record = AtlasRecord.of(detector, [], [112, 113], every=every)
    write_tables(atlas, record, folder)
    write_page(folder, atlas, record, "mini <111>")
    return atlas


def _atlas(detector: Detector, folder: Path, categories: tuple[str, ...], *, every: bool) -> Atlas:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for layer, guides in detector.layers.items():
        used = guides.atom_ids.tolist()
        for atom in range(LATENTS) if every else used:
            for category in (None, *categories) if atom in used else (None,):
                rows.append(_row(layer, atom, category, atom in used, rng))
                rows[-1] |= _crops(folder, layer, atom, category, rng)
    layouts = {layer: rng.normal(size=(LATENTS, 2)) for layer in detector.layers}
    for places in layouts.values():
        places[:2] = np.nan  # of dead latents
    known = [
        {"layer": layer, "category": name, "images": 5, "patches": 80, "r2": 0.8, "mse": 0.0123}
        for layer in detector.layers
        for name in (None, *categories)
    ]
    none = Factors(pd.DataFrame(), pd.DataFrame(), pd.DataFrame())
    return Atlas(pd.DataFrame(rows), pd.DataFrame(known), layouts, none, {})


def _row(
    layer: str, atom: int, category: str | None, used: bool, rng: np.random.Generator
) -> dict[str, Any]:
    coefficient = float(rng.normal()) if used else np.nan
    low, ap, high = sorted(rng.uniform(size=3).tolist())
    return {
        **{"layer": layer, "atom": atom, "category": category, "in_detector": used},
        **{"coefficient": coefficient, "detection_coefficient": np.nan},
        "side": ("anomaly" if coefficient > 0 else "normal") if used else "",
        **dict.fromkeys(("share", "share_apart"), float(rng.uniform()) if used else np.nan),
        **{"patches": 80, "patches_anomalous": 8.0, "rate": 0.1, "rate_normal": 0.05},
        **{"rate_anomalous": None if category else 0.4, "mean_active": 1.5, "max": 3.0},
        **{"ap": ap, "ap_low": low, "ap_high": high, "base_rate": 0.1},
        **{"projection_ap": ap / 2, "projection_ap_low": np.nan, "projection_ap_high": np.nan},
        **{"generality": 0.5, "best_cosine": 0.7, "seeds": 2, "reproduced": 1},
        "nearest": rng.choice(LATENTS, NEAREST, replace=False).tolist(),
        **{"nearest_cosine": [0.5, 0.4, 0.3], "x": 0.0, "y": 0.0},
    }


def _crops(
    folder: Path, layer: str, atom: int, category: str | None, rng: np.random.Generator
) -> dict[str, str | None]:
    """A strip of two crops, of the latent alone where the atom is odd."""
    files: dict[str, str | None] = {"crops": None, "projection_crops": None}
    end = "" if category is None else "-c"
    for column, kind in (("crops", ""), ("projection_crops", "-p"))[: 2 - atom % 2]:
        files[column] = f"crops/{layer}-{atom}{kind}{end}.jpg"
        Image.fromarray(rng.integers(0, 255, (8, 16, 3), np.uint8)).save(
            folder / str(files[column])
        )
    return files

"""Cases as other folders of the reference may have them: with fewer arrays.

`write_case` writes a folder with a README.json and an npz, `lean_*` take the tiny case down to
what a case may have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from parity.cases import OWN_CASES, Case, cases

Content = tuple[dict[str, np.ndarray], dict[str, Any]]
"""Arrays and scalars of a case."""

INPUTS = {
    "sae": {"x_tokens", "D0", "W_fwd", "Draw_fwd", "stats_before", "train_x"},
    "guide": {"codes_init", "dead_mask", "D_matrix", "x_tokens", "labels", "gt_mask"},
}
PARAMS = {
    "sae": {
        *("D", "C", "topk", "auxk", "auxk_coef", "dead_steps_threshold", "B", "grid_side", "lmbda"),
        *("tokens_per_batch", "dead_steps", "dead_activation_threshold"),
    },
    "guide": {"temperature", "sigma", "image_size", "sparsity_lmbda", "guide_topk"},
}
TOL = {"sae": 1e-6, "guide": 2e-6}


def write_case(folder: Path, kind: str, content: Content) -> Case:
    """Write the case into a folder and read it back as the runner does."""
    arrays, scalars = content
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "case.npz", **arrays)
    weights = ("train_W", "train_D")
    entry = {
        "file": "case.npz",
        "kind": kind,
        "tol": TOL[kind],
        "scalars": scalars,
        "roles": {name: "param" if name in PARAMS[kind] else "out" for name in scalars},
        "arrays": {
            name: {
                "role": "in" if name in INPUTS[kind] else "out",
                "tol": 1e-5 if name.startswith(weights) else TOL[kind],
            }
            for name in arrays
        },
    }
    (folder / "README.json").write_text(json.dumps({"files": {"case": entry}}))
    return cases(kind, folder)[0]


def tiny(kind: str) -> Content:
    """The project's own copy of the tiny case."""
    case = cases(kind, OWN_CASES)[0]
    arrays = {name: case.array(name) for name in case.arrays}
    return arrays, dict(case.scalars)


def lean_sae() -> Content:
    """The tiny case without intermediate arrays and with the last training step only."""
    arrays, scalars = tiny("sae")
    for name in ("train_W", "train_D", "train_stats"):
        arrays[f"{name}_last"] = arrays.pop(name)[-1]
    for name in ("z", "pre", "topk_idx", "topk_val_raw", "auxk_idx", "auxk_val", "recon_error"):
        del arrays[name]
    return arrays, scalars


def lean_guide() -> Content:
    """The tiny case without intermediate arrays and with the last training step only."""
    arrays, scalars = tiny("guide")
    for name in ("adam_codes", "ema_codes"):
        arrays[f"{name}_last"] = arrays.pop(name)[-1]
    for name in ("score_map", "codes_eff", "sim", "local_prob", "anomaly_map_gauss_batchquirk"):
        del arrays[name]
    for name in ("image_scores", "guide_topk", "topk_losses"):
        del scalars[name]
    return {k: v for k, v in arrays.items() if not k.startswith("topk")}, scalars

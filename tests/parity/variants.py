"""Cases as other folders of the reference may have them: other sizes, fewer arrays.

`write_case` writes a folder with a README.json and an npz, `lean_*` take the tiny case down to
what a case may have, `other_*` compute a case of another size with the literal implementations
beside this package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reference.guides import literal_losses
from benchmarks.reference.sae import DenseSae, rows, topk_code
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


def other_sae(dim: int = 24, latents: int = 96, k: int = 6, images: int = 3) -> Content:
    """Other sizes, five patches an image, one batch repeated, AuxK over every dead latent."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(images, 6, dim, generator=generator)
    start = rows(torch.randn(latents, dim, generator=generator))
    encoder = torch.randn(latents, dim, generator=generator) / dim**0.5
    dictionary = torch.randn(latents, dim, generator=generator)
    age = torch.randint(0, 8, (latents,), generator=generator)
    forward = DenseSae(encoder, dictionary, k, dead_after=45)
    forward.age = age.clone()
    total, reconstruction, auxk, dead = forward.loss(x[:, 1:])
    total.backward()
    losses = [float(value.detach()) for value in (total, reconstruction, auxk)]
    training = DenseSae(start, start, k, dead_after=45)
    steps = [training.step(x[:, 1:]) for _ in range(5)]
    with torch.no_grad():
        counts = (topk_code(x @ training.encoder.t(), k) > 0).flatten(0, 1).sum(dim=0)
    arrays = {
        "x_tokens": x,
        "D0": start,
        "W_fwd": encoder,
        "Draw_fwd": dictionary,
        "stats_before": age,
        "stats_after": forward.age,
        "dead_mask": dead,
        "grad_W": forward.encoder.grad,
        "grad_Draw": forward.dictionary.grad,
        "train_x": x[:, 1:],
        # The last step under the plain name: told apart by its number of axes.
        "train_W": training.encoder.detach(),
        "train_D_last": training.dictionary.detach(),
        "guide_count_active": counts,
    }
    scalars: dict[str, Any] = {
        "topk": k,
        "auxk_coef": 1 / 32,
        "dead_steps_threshold": 45,
        "B": images,
        **dict(zip(("total_loss", "recon_loss", "auxk_loss_mean"), losses, strict=True)),
        "train_steps": [
            {"recon": r.item(), "total": t.item(), "n_dead": int(d.sum())} for t, r, _, d in steps
        ],
    }
    return {name: np.asarray(value) for name, value in arrays.items()}, scalars


def other_guide(dim: int = 20, latents: int = 40, side: int = 5, size: int = 30) -> Content:
    """Other sizes, three images, the last of five steps only."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(3, 1 + side * side, dim, generator=generator)
    atoms = rows(torch.randn(latents, dim, generator=generator))
    codes = 0.1 + 0.1 * torch.randn(4, latents, generator=generator)
    dead = torch.rand(latents, generator=generator) < 0.3
    labels = torch.tensor([1, 0, 1])
    masks = torch.zeros(3, size, size)
    masks[0, 3:11, 8:20] = masks[2, 15:25, 2:9] = 1
    leaf = codes.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=1e-2, betas=(0.5, 0.999))
    losses, gradients, average = [], [], codes
    for step in range(5):
        result = literal_losses(leaf, dead, atoms, tokens, labels, masks, (side, side))
        gradients.append(torch.autograd.grad(sum(result), leaf)[0])
        leaf.grad = gradients[-1]
        optimizer.step()
        now = leaf.detach().clone()
        average = now if step == 0 else average + 0.001 * (now - average)
        names = ("det_loss", "seg_loss", "sparsity_loss")
        losses.append({n: float(v.detach()) for n, v in zip(names, result, strict=True)})
    arrays = {
        "codes_init": codes,
        "dead_mask": dead,
        "D_matrix": atoms,
        "x_tokens": tokens,
        "labels": labels,
        "gt_mask": masks.to(torch.uint8),
        "grad_total": gradients[0],
        "adam_codes_last": leaf.detach(),
        "ema_codes_last": average,
    }
    scalars = {"det_loss": losses[0]["det_loss"], "adam_losses": losses}
    return {name: np.asarray(value) for name, value in arrays.items()}, scalars

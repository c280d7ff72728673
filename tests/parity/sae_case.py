"""Cases of kind `sae`: one forward and backward pass (A), five Adam steps (B), active counts (C).

Everything goes through the classes that `spg-pipe train-sae` uses: SparseAutoencoder, DeadCounter
and SaeTrainer. Settings that the case shares with the published recipe are the code's own
defaults, so that a changed default shows here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.cases import Case, Comparison, compare
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.model import SparseAutoencoder, topk_code
from spg_pipe.sae.trainer import ACTIVE_ABOVE, SaeTrainer, StepConstants, auxk_loss

STEPS = 5


def compare_case(case: Case) -> list[Comparison]:
    """Hold every result that the case has to ours."""
    got: dict[str, Any] = {}
    if case.has("W_fwd") or case.has("Draw_fwd"):
        got |= _forward(case)
    if case.has("train_x"):
        got |= _five_steps(case)
    found = []
    for name, value in got.items():
        if case.has(name):
            expected = case.array(name)
            found.append(compare(name, _shaped(value, expected), expected, case.tol(name)))
        elif name == "train_steps" and case.has_scalar(name):
            found += _steps_table(case, value)
        elif case.has_scalar(name):
            found.append(compare(name, value, case.scalar(name), case.tol(name)))
    return found


def trainer(case: Case, encoder: str, dictionary: str) -> SaeTrainer:
    """A trainer of `protocol: spg` with the case's weights; defaults of the code elsewhere."""
    weights, atoms = _tensor(case, encoder), _tensor(case, dictionary)
    latents, dim = weights.shape
    default = StepConstants()
    constants = replace(
        default,
        auxk=int(case.scalar("auxk", default.auxk)),
        # The published coefficient and threshold are the code's own, whatever it says they are.
        **_unless_published(case, "auxk_coef", "auxk_coef", 1 / 32),
        **_unless_published(case, "dead_steps_threshold", "dead_after", 10_000_000),
    )
    sae = SparseAutoencoder(dim, latents, int(case.scalar("topk")))
    sae.encoder.data, sae.dictionary.data = weights, atoms
    return SaeTrainer(sae, protocol("spg").dead_counter, constants)


def _forward(case: Case) -> dict[str, Any]:
    """Fixture A: untied, unnormalised weights and preset counters."""
    ours = trainer(case, _first(case, "W_fwd", "D0"), _first(case, "Draw_fwd", "D0"))
    if case.has("stats_before"):
        ours.counter.restore(_tensor(case, "stats_before").long())
    x = patches(_tensor(case, "x_tokens"))
    result, dead = ours.losses(x)
    result.total.backward()
    sae, constants = ours.sae, ours.constants
    with torch.no_grad():
        pre, x_hat = x @ sae.encoder.t(), sae(x).x_hat
        z = topk_code(pre, sae.k)
        auxk = min(constants.auxk, len(dead))
        candidates = pre * dead
        got = {
            "pre": pre,
            "z": z,
            "x_hat": x_hat,
            "recon_error": (x_hat - x).pow(2).mean(dim=1),
            "sparsity_penalty": z.sum(dim=1) / len(dead),
            "auxk_loss": auxk_loss(pre, sae.atoms, x - x_hat, dead, constants.auxk),
            "topk_val_raw": pre.topk(sae.k, dim=1).values,
            "auxk_val": candidates.topk(auxk, dim=1).values.clamp_min(0),
        }
    return got | {
        "recon_loss": result.reconstruction,
        "auxk_loss_mean": result.auxk,
        "total_loss": result.total,
        "stats_after": ours.counter.age,
        "dead_mask": dead,
        "n_dead": dead.sum(),
        "grad_W": sae.encoder.grad,
        "grad_Draw": sae.dictionary.grad,
        "topk_idx": _indices_of(case, "topk_idx", pre, got["topk_val_raw"]),
        "auxk_idx": _indices_of(case, "auxk_idx", candidates.clamp_min(0), got["auxk_val"]),
        **_settings(constants, x),
    }


def _indices_of(case: Case, name: str, ours: Tensor, largest: Tensor) -> Any:
    """The case's indices where they pick our largest values, else ours: ties may be swapped."""
    if not case.has(name):
        return None
    expected = _tensor(case, name).long().flatten(0, 1)
    picked = ours.gather(1, expected).sort(dim=1, descending=True).values
    same = torch.isclose(picked, largest, rtol=0, atol=case.tol(name))
    return torch.where(
        same.all(dim=1, keepdim=True), expected, ours.topk(expected.shape[1]).indices
    )


def _settings(constants: StepConstants, x: Tensor) -> dict[str, Any]:
    """Derived settings of the case, for those that list them as results."""
    return {
        "tokens_per_batch": len(x),
        "dead_steps": max(1, constants.dead_after // len(x)),
        "dead_activation_threshold": ACTIVE_ABOVE,
        "auxk_coef": constants.auxk_coef,
    }


def _five_steps(case: Case) -> dict[str, Any]:
    """Fixtures B and C: steps from the tied initialisation, then active counts."""
    ours = trainer(case, "D0", "D0")
    steps: dict[str, list[Any]] = {"W": [], "D": [], "stats": []}
    table = []
    for x in batches(case):
        result, dead = ours.step(x)
        steps["W"].append(ours.sae.encoder.detach().clone())
        steps["D"].append(ours.sae.dictionary.detach().clone())
        steps["stats"].append(ours.counter.age.clone())
        table.append(
            {
                "recon": float(result.reconstruction.detach()),
                "auxk_times_coef": float(result.auxk.detach()) * ours.constants.auxk_coef,
                "total": float(result.total.detach()),
                "n_dead": int(dead.sum()),
                "W_norm": float(steps["W"][-1].norm()),
                "W_sum": float(steps["W"][-1].sum()),
                "D_sum": float(steps["D"][-1].sum()),
                "W_size": float(steps["W"][-1].abs().sum()),
                "D_size": float(steps["D"][-1].abs().sum()),
            }
        )
    got: dict[str, Any] = {"train_steps": table}
    for name, values in steps.items():
        # A case may store every step or only the last one, under either name.
        stored = f"train_{name}"
        every = case.has(stored) and case.array(stored).ndim > values[0].ndim
        got[stored] = torch.stack(values) if every else values[-1]
        got[f"{stored}_last"] = values[-1]
    if case.has("x_tokens"):
        counts = ours.sae(_tensor(case, "x_tokens").flatten(0, 1)).active
        got |= {"guide_count_active": counts, "guide_dead_mask": counts == 0}
    return got


def batches(case: Case) -> list[Tensor]:
    """The batch of each step, (n, D): split along the steps, or one batch repeated."""
    x = _tensor(case, "train_x")
    steps = len(case.scalar("train_steps", [None] * STEPS))
    if x.ndim == 4:
        return [step.flatten(0, -2) for step in x]
    images = int(case.scalar("B", len(x)))
    if x.ndim == 3 and len(x) == steps * images:
        return [step.flatten(0, -2) for step in x.split(images)]
    return [x.flatten(0, -2)] * steps


def _steps_table(case: Case, ours: list[dict[str, float]]) -> list[Comparison]:
    """Scalars of every step; checksums of the weights have the weights' tolerance."""
    expected = case.scalar("train_steps")
    found = []
    for key in expected[0]:
        if key not in ours[0]:
            continue
        checksum = key.startswith(("W_", "D_"))
        tol = case.tol("train_steps")
        if checksum:
            # A sum of n weights is known to float32's rounding of Σ|w|, whatever its own size.
            scale = max(1.0, *(abs(step[key]) for step in expected))
            tol = max(1e-5, 1e-7 * ours[0][f"{key[0]}_size"] / scale)
        found.append(
            compare(
                f"train_steps.{key}",
                [step[key] for step in ours[: len(expected)]],
                [step[key] for step in expected],
                tol,
            )
        )
    return found


def patches(tokens: Tensor) -> Tensor:
    """(B, 1 + N, D) → (B·N, D): the SAE never sees CLS."""
    return tokens[:, 1:].flatten(0, 1)


def _unless_published(case: Case, scalar: str, field: str, published: float) -> dict[str, Any]:
    given = case.scalar(scalar, published)
    return {} if given == published else {field: given}


def _first(case: Case, *names: str) -> str:
    return next(name for name in names if case.has(name))


def _tensor(case: Case, name: str) -> Tensor:
    tensor = torch.from_numpy(np.array(case.array(name)))
    return tensor.float() if tensor.is_floating_point() else tensor


def _shaped(value: Any, expected: np.ndarray) -> Any:
    """Ours without the split into images, as the case splits it."""
    array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return array.reshape(expected.shape) if array.size == expected.size else array

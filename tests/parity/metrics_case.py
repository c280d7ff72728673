"""Cases of kind `metrics`: AUROC, AP and F1-max of maps and masks, and the reference's PRO."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.cases import Case, Comparison, compare
from spg_pipe.errors import SpgError
from spg_pipe.metrics import accumulate, image_metrics, label_regions
from spg_pipe.metrics.accumulators import SortAccumulator
from spg_pipe.metrics.published import spg_pro


def compare_case(case: Case) -> list[Comparison]:
    """Hold every result that the case has to ours."""
    comparisons = []
    masks = case.array("gt")
    for part, maps in (("cont", "pr"), ("quant", "pr_quant")):
        if case.has(maps) and case.has_scalar(part):
            comparisons += _pixel(case, part, case.array(maps), masks)
    if case.has_scalar("image"):
        image = image_metrics(case.array("img_label"), case.array("img_score"))
        for name, expected in case.scalar("image").items():
            got: Any = getattr(image, {"f1max": "f1_max"}.get(name, name))
            if isinstance(expected, list):
                spg = image_metrics(case.array("img_label"), case.array("img_score"), "spg")
                got = [spg.f1_max, spg.f1_threshold]
            comparisons.append(compare(f"image.{name}", got, expected, case.tol("image")))
    if case.has_scalar("n_regions_per_image"):
        expected = case.scalar("n_regions_per_image")
        name = "n_regions_per_image"
        comparisons.append(
            compare(name, [label_regions(mask)[1] for mask in masks], expected, case.tol(name))
        )
    return comparisons + _edges(case, masks)


def _pixel(case: Case, part: str, maps: np.ndarray, masks: np.ndarray) -> list[Comparison]:
    def images() -> Any:
        return zip(maps, masks, strict=True)

    spg = accumulate(images, protocol="spg")
    accumulator = filled(maps, masks)
    ours = {
        "pixel_auroc": spg.auroc,
        "pixel_ap": spg.ap,
        "pro_fast": spg.pro["fast"],
        "pro_slow": spg.pro["slow"],
        "f1max": [spg.f1_max, spg.f1_threshold],
        "n_thresholds": spg_pro(accumulator).n_thresholds,
    }
    expected = case.scalar(part)
    tol = case.tol(part)
    found = [compare(f"{part}.{k}", ours[k], expected[k], tol) for k in ours if k in expected]
    exact = accumulate(images, "sort")
    found += [
        compare(f"{part}.{name} (exact)", getattr(exact, field), expected[name], tol)
        for name, field in (("pixel_auroc", "auroc"), ("pixel_ap", "ap"))
        if name in expected
    ]
    return found


def _edges(case: Case, masks: np.ndarray) -> list[Comparison]:
    """The reference's edge cases: no region, a constant map, a perfect binary map."""
    maps = case.array("pr") if case.has("pr") else case.array("pr_quant")
    inputs = {
        "edge_no_region": (maps, np.zeros_like(masks)),
        "edge_constant_map": (np.full_like(maps, 0.5), masks),
        "edge_perfect_binary_map": (masks.astype(np.float32), masks),
    }
    found = []
    for edge, (edge_maps, edge_masks) in inputs.items():
        for function in ("fast", "slow"):
            name = f"{edge}_{function}"
            if not case.has_scalar(name):
                continue
            expected = case.scalar(name)
            try:
                got = getattr(spg_pro(filled(edge_maps, edge_masks)), function)
            except SpgError:
                got = "raises"
            if str(expected).startswith("raises") or got == "raises":
                ok = str(expected).startswith("raises") and got == "raises"
                found.append(Comparison(name, 0.0 if ok else float("inf"), 0.0, ok))
            else:
                found.append(compare(name, got, expected, case.tol(name)))
    return found


def filled(maps: np.ndarray, masks: np.ndarray) -> SortAccumulator:
    accumulator = SortAccumulator()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        accumulator.update(anomaly_map, mask)
    return accumulator

"""Cases of kind `guide`: vectors, probabilities, maps, losses, gradients, Adam + EMA, scores.

Everything goes through the classes that the command line uses: GuideTrainer for losses and steps
(`protocol: spg`), LayerGuides and Detector for probabilities, scoring for maps and image scores.
Settings that the case shares with the published recipe are the code's own defaults, so that a
changed τ or σ shows here.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from parity.cases import Case, Comparison, compare
from spg_pipe.backbones.spec import TokenKey
from spg_pipe.decision.maps import SIGMA, anomaly_maps, raw_maps
from spg_pipe.decision.rules import image_scores
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import DetectorRecord
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.layer import LayerGuides
from spg_pipe.guides.model import (
    anomaly_probability,
    cosines,
    effective_codes,
    to_grid,
)
from spg_pipe.guides.trained.losses import PixelTarget, segmentation_loss
from spg_pipe.guides.trained.trainer import PUBLISHED, Constants, GuideLosses, GuideTrainer
from spg_pipe.recipe.params import MethodParams, ScoreParams

LAYER = TokenKey("layer")
_LOSSES = ("total", "det_loss", "seg_loss", "sparsity_loss")


def compare_case(case: Case) -> list[Comparison]:
    """Hold every result that the case has to ours."""
    guide = GuideCase(case)
    got = guide.probabilities() | guide.maps() | guide.mean_tokens() | guide.top_k()
    if case.has("gt_mask"):
        got |= guide.losses() | guide.steps()
    found = []
    for name, value in got.items():
        if case.has(name):
            found.append(compare(name, value, case.array(name), case.tol(name)))
        elif case.has_scalar(name):
            found += _scalars(case, name, value)
    return found


def _scalars(case: Case, name: str, value: Any) -> list[Comparison]:
    """A number, a dict of numbers, or a list of such dicts (a row a step)."""
    expected, tol = case.scalar(name), case.tol(name)
    if isinstance(expected, dict):
        keys = [key for key in expected if key in value]
        return [compare(f"{name}.{key}", value[key], expected[key], tol) for key in keys]
    if isinstance(expected, list) and expected and isinstance(expected[0], dict):
        return [
            compare(
                f"{name}.{key}", [row[key] for row in value], [row[key] for row in expected], tol
            )
            for key in expected[0]
            if key in value[0]
        ]
    return [compare(name, value, expected, tol)]


class GuideCase:
    """The case's inputs as the command line's own objects."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.codes = self._tensor("codes_init")
        self.atoms = self._tensor("D_matrix")
        self.dead = self._tensor("dead_mask").bool()
        self.tokens = self._tensor("x_tokens")
        self.grid = self._grid(self.tokens.shape[1] - 1)

    def _tensor(self, name: str) -> Tensor:
        tensor = torch.from_numpy(np.array(self.case.array(name)))
        return tensor.float() if tensor.is_floating_point() else tensor

    def _grid(self, patches: int) -> tuple[int, int]:
        side = int(self.case.scalar("grid_side", round(patches**0.5)))
        return side, patches // side

    def _published(self, scalar: str, published: float, default: float) -> float:
        """The code's own default where the case has the published value, else the case's."""
        given = self.case.scalar(scalar, published)
        return default if given == published else given

    @cached_property
    def size(self) -> int:
        """S: side of the maps, pixels."""
        if self.case.has_scalar("image_size"):
            return int(self.case.scalar("image_size"))
        return int(self.case.array("gt_mask").shape[-1])

    @cached_property
    def sigma(self) -> float:
        """σ of the blur."""
        return self._published("sigma", 4, SIGMA)

    @cached_property
    def constants(self) -> Constants:
        """The code's own, but for what the case has otherwise."""
        return replace(
            PUBLISHED,
            tau=self._published("temperature", 0.07, PUBLISHED.tau),
            sparsity=self._published("sparsity_lmbda", 1e-3, PUBLISHED.sparsity),
        )

    def trainer(
        self,
        detection: Literal["cls", "mean_tokens"] = "cls",
        top_k: int | None = None,
        protocol: Literal["default", "spg"] = "spg",
    ) -> GuideTrainer:
        """A trainer at step 0 with the case's codes."""
        guides = TrainedGuides(epochs=1, top_k=top_k)
        method = MethodParams(protocol=protocol, detection=detection)
        return GuideTrainer(
            self.codes, self.atoms, self.dead, self.grid, guides, method, self.constants
        )

    def batch(self, images: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, labels and masks of some images."""
        masks = self._tensor("gt_mask").float()
        return self.tokens[images], self._tensor("labels").long()[images], masks[images]

    def detector(self, detection: Literal["cls", "mean_tokens"] = "cls") -> Detector:
        """The detector that these codes make."""
        views = (detection, "patches")
        guides = LayerGuides.of_codes(self.codes, views, self.atoms, self.dead, None, self.grid)
        record = DetectorRecord.model_construct(detection=detection, guides=TrainedGuides(epochs=1))
        return Detector({LAYER.layer: guides}, record)

    def judge(
        self, tokens: Tensor, detection: Literal["cls", "mean_tokens"] = "cls"
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Patch grids, by the layer's name, and CLS probabilities."""
        detector = self.detector(detection)
        patches, cls = detector.probabilities({LAYER: tokens}, tau=self.constants.tau)
        return {key.name: values for key, values in patches.items()}, cls

    def probabilities(self) -> dict[str, Any]:
        """Codes, vectors, cosines and probabilities of every token."""
        vectors = torch.cat(
            [pair.vectors for pair in self.detector().layers[LAYER.layer].pairs.values()]
        )
        patches, cls = self.judge(self.tokens)
        similarity = cosines(self.tokens, vectors)
        anomaly = anomaly_probability(similarity[..., 2:], self.constants.tau)
        # The patches' numbers are the detector's own; CLS is no patch and has no place in its maps.
        anomaly[:, 1:] = patches[LAYER.name].flatten(1)
        return {
            "codes_eff": effective_codes(self.codes, self.dead),
            "guide_vectors": vectors,
            "sim": similarity,
            "pipeline_score": cls,
            "local_prob": torch.stack([1 - anomaly, anomaly], dim=-1),
        }

    def maps(self) -> dict[str, Any]:
        """Maps before and after the blur, and image scores."""
        patches, cls = self.judge(self.tokens)
        raw = raw_maps(patches, self.size)
        blurred = anomaly_maps(patches, self.size, self.sigma)
        scores = {}
        if self.case.has_scalar("image_scores"):
            for name in self.case.scalar("image_scores"):
                options = score_options(name)
                if options is not None:
                    scores[name] = image_scores(blurred, cls.numpy(), **options)
        return {
            "score_map": torch.stack([1 - raw, raw], dim=1),
            "anomaly_map_raw": raw,
            "anomaly_map_gauss": blurred,
            # We never blur across images (docs/method.md §5). That filter on our raw maps shows
            # that the reference's batch result differs from ours by it and by nothing else.
            "anomaly_map_gauss_batchquirk": gaussian_filter(raw.numpy(), self.sigma),
            "image_scores": scores,
        }

    def losses(self) -> dict[str, Any]:
        """Losses and each one's gradient, and the batch of one image."""
        got: dict[str, Any] = {}
        batch = self.trainer().batch(*self.batch())
        for name, key in (("det", "detection"), ("seg", "segmentation"), ("total", "total")):
            trainer = self.trainer()
            got[f"grad_{name}"] = self._gradient(trainer, getattr(trainer.losses(batch), key))
        trainer = self.trainer()
        result = trainer.losses(batch)
        got["grad_sparsity"] = self._gradient(trainer, result.sparsity)
        parts = self._segmentation(*self.batch())
        first = self.batch(slice(0, 1))
        return got | {
            "det_loss": result.detection,
            "seg_loss": result.segmentation,
            "sparsity_loss_times_lmbda": result.sparsity,
            "total_loss": result.total,
            "focal": parts.focal,
            "dice_anom": parts.dice_anomaly,
            "dice_norm": parts.dice_normal,
            "seg_loss_batch1_official_rowwise_quirk": self._of_trainer(first).segmentation,
            "seg_loss_batch1_intended": self._of_trainer(first, protocol="default").segmentation,
        }

    def _of_trainer(self, batch: tuple[Tensor, Tensor, Tensor], **options: Any) -> GuideLosses:
        """A new trainer's losses of a batch."""
        trainer = self.trainer(**options)
        return trainer.losses(trainer.batch(*batch))

    def _segmentation(self, tokens: Tensor, _labels: Tensor, masks: Tensor) -> Any:
        """The parts whose sum is the trainer's segmentation loss."""
        vectors = effective_codes(self.codes, self.dead) @ self.atoms
        local = cosines(tokens[:, 1:], vectors[2:])
        logits = to_grid((local[..., 1] - local[..., 0]) / self.constants.tau, self.grid)
        return segmentation_loss(logits, PixelTarget.of(masks, self.grid))

    @staticmethod
    def _gradient(trainer: GuideTrainer, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, trainer.codes)[0]

    def mean_tokens(self) -> dict[str, Any]:
        """The mean-token variant: in this protocol the first image's mean serves the batch."""
        first = self.tokens[:1].expand_as(self.tokens)
        _, score = self.judge(first, "mean_tokens")
        got: dict[str, Any] = {"pipeline_score_mean_tokens": score}
        if self.case.has("gt_mask"):
            trainer = self.trainer("mean_tokens")
            loss = trainer.losses(trainer.batch(*self.batch())).detection
            got |= {
                "det_loss_mean_tokens": loss,
                "grad_det_mean_tokens": self._gradient(trainer, loss),
            }
        return got

    def top_k(self) -> dict[str, Any]:
        """Hard top-k codes with a straight-through gradient."""
        if not self.case.has_scalar("guide_topk"):
            return {}
        k = int(self.case.scalar("guide_topk"))
        guides = LayerGuides.of_codes(
            self.codes, ("cls", "patches"), self.atoms, self.dead, k, self.grid
        )
        pairs = guides.pairs.values()
        codes = torch.zeros_like(self.codes)
        codes[:, guides.atom_ids] = torch.cat([pair.codes for pair in pairs])
        vectors = torch.cat([pair.vectors for pair in pairs])
        got: dict[str, Any] = {"topk_codes_eff": codes, "topk_guide_vectors": vectors}
        if self.case.has("gt_mask"):
            trainer = self.trainer(top_k=k)
            result = trainer.losses(trainer.batch(*self.batch()))
            got["topk_losses"] = _row(result)
            got["topk_grad_total"] = self._gradient(trainer, result.total)
        return got

    def steps(self) -> dict[str, Any]:
        """Adam + EMA on one batch; a case may store every step or only the last one."""
        trainer = self.trainer()
        count = len(self.case.scalar("adam_losses", [None] * 5))
        rows, codes, averages = [], [], []
        batch = trainer.batch(*self.batch())
        for _ in range(count):
            rows.append(_row(trainer.step(batch)))
            codes.append(trainer.codes.detach().clone())
            averages.append(trainer.ema.clone())
        got: dict[str, Any] = {"adam_losses": rows}
        for name, values in (("adam_codes", codes), ("ema_codes", averages)):
            every = self.case.has(name) and self.case.array(name).ndim > 2
            got |= {name: torch.stack(values) if every else values[-1], f"{name}_last": values[-1]}
        return got


def _row(losses: Any) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in zip(_LOSSES, losses, strict=True)}


def score_options(name: str) -> dict[str, Any] | None:
    """The options behind a name in `image_scores`; None for a name that we do not know."""
    if name == "map_max":
        return {"image_score": ScoreParams().image_score}  # the published main setting
    if name == "pipeline":
        return {"image_score": "cls"}
    for pattern, kind, option, published in (
        (r"map_top([\d.]+)pct", "top_mean", "top_share", 10),
        (r"map_lse_tau([\d.]+)", "log_mean_exp", "lme_tau", 1),
        (r"hybrid_max_a([\d.]+)", "mix", "alpha", 0.5),
    ):
        if match := re.fullmatch(pattern, name):
            value = float(match[1])
            given = value / 100 if option == "top_share" else value
            # The code's own default where it is the published one.
            return {"image_score": kind} | ({} if value == published else {option: given})
    return None

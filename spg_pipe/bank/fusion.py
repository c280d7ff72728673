"""What a bank's distances say of images: alone, or added to a detector's decision."""

from torch import Tensor

from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.bank.memory import Distances
from spg_pipe.detector.judge import Judged, judge
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import ScoreParams

KNOWN = "among_normals"
"""Column of scores: the image is one of the bank's own, so that it has no distance to it."""


def judge_fused(
    detector: Detector,
    found: Distances,
    tokens: dict[str, Tensor],
    seen: BackboneSpec,
    weight: float,
) -> Judged:
    """The additive decision with the bank's distance as one more component of patches and image.

    Parameters
    ----------
    found : Distances
        Of the same images.
    tokens, seen
        As for `judge`.
    weight : float
        Of the bank.
    """
    grids = {layer: (v.shape[1], v.shape[2]) for layer, v in found.patches.items()}
    judged = judge(detector, tokens, grids, seen, detector.record.rule)
    patches = {name: own + weight * found.patches[name] for name, own in judged.patches.items()}
    share = weight * found.top
    columns = judged.columns | {"score": judged.columns["score"] + share, "share_bank": share}
    return Judged(patches, columns | {KNOWN: found.known})


def judge_alone(found: Distances) -> Judged:
    """The bank's distance and nothing else."""
    return Judged(found.patches, {"score": found.top, "share_bank": found.top, KNOWN: found.known})


def require_fusible(detector: Detector, score: ScoreParams | None = None) -> None:
    """Refuse, with an `SpgError`, to add a bank to the published rule."""
    if (rule := detector.rule(score).rule) != "additive":
        raise SpgError(
            "A bank is one more addend of the additive decision, and the score.rule is "
            f"{rule}. Use a detector with score.rule: additive, or the bank alone "
            "(--bank alone)."
        )

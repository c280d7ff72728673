"""What guides and rules are in words: each sentence is of the kind that made the numbers."""

from spg_pipe.decision.rules import ALPHA, Additive, Published, Rule
from spg_pipe.errors import counted
from spg_pipe.guides.kinds import ContrastGuides, Guides, TrainedGuides
from spg_pipe.recipe.params import ImageScore

_PUBLISHED: dict[ImageScore, str] = {
    "max": "the map's maximum",
    "cls": "the probability of the detection feature",
    "top_mean": "the mean of the map's highest values",
    "log_mean_exp": "the log-mean-exp of the map",
    "mix": f"{ALPHA:g} × the detection feature's probability + {1 - ALPHA:g} × the map's maximum",
}


def guides_in_words(guides: Guides) -> str:
    """How the guides were made, with the figures of their kind."""
    match guides:
        case ContrastGuides():
            return f"contrast of class means, in closed form; at most {guides.atoms} atoms a pair"
        case TrainedGuides():
            kept = f"; at most {guides.top_k} codes a guide" if guides.top_k else ""
            return f"trained with masks, {counted(guides.epochs, 'epoch')}{kept}"


def image_score_in_words(rule: Rule) -> str:
    """What an image's score is."""
    match rule:
        case Additive():
            weights = rule.weights.image.model_dump()
            used = [name for name, weight in weights.items() if weight > 0]
            return f"additive rule: log odds, a bias and a weighted sum of {', '.join(used)}"
        case Published():
            return f"published rule: {_PUBLISHED[rule.image_score]} ({rule.image_score})"

"""What the page says of guides and rules: each sentence is of the kind that made the numbers."""

from dataclasses import dataclass

from spg_pipe.decision.maps import SHOWN
from spg_pipe.decision.rules import ALPHA, Additive, Published, Rule
from spg_pipe.guides.kinds import ContrastGuides, Guides, TrainedGuides
from spg_pipe.recipe.params import ImageScore

_PUBLISHED: dict[ImageScore, str] = {
    "max": "the map's maximum",
    "cls": "the probability of the detection feature",
    "top_mean": "the mean of the map's highest values",
    "log_mean_exp": "the log-mean-exp of the map",
    "mix": f"{ALPHA:g} × the detection feature's probability + {1 - ALPHA:g} × the map's maximum",
}


@dataclass(frozen=True)
class MapReading:
    """How the colours of the maps are read."""

    low: str
    """What the darkest colour stands for."""
    high: str
    sentence: str


def guides_in_words(guides: Guides) -> str:
    """How the guides were made, with the figures of their kind."""
    match guides:
        case ContrastGuides():
            return f"contrast of class means, in closed form; at most {guides.atoms} atoms a pair"
        case TrainedGuides():
            kept = f"; at most {guides.top_k} codes a guide" if guides.top_k else ""
            return f"trained with masks, {guides.epochs} epochs{kept}"


def image_score_in_words(rule: Rule) -> str:
    """What an image's score is."""
    match rule:
        case Additive():
            weights = rule.weights.image.model_dump()
            used = [name for name, weight in weights.items() if weight > 0]
            return f"additive rule: log odds, a bias and a weighted sum of {', '.join(used)}"
        case Published():
            return f"published rule: {_PUBLISHED[rule.image_score]} ({rule.image_score})"


def map_reading(rule: Rule) -> MapReading:
    """What the colours of a map stand for."""
    match rule:
        case Additive():
            low, high = SHOWN
            return MapReading(
                f"log odds {low:g}",
                f"{high:g}",
                "all colour is log odds of an anomaly: a weighted sum of components, each "
                "standardised over the patches of the auxiliary set. Black is "
                f"{low:g} and less, yellow {high:g} and more; 0 is no border between normal and "
                "anomalous.",
            )
        case Published():
            return MapReading(
                "0",
                "1",
                "all colour is the anomaly probability: from 0, like the normal guide (black), "
                "over 0.5, as much like one guide as like the other (purple-red), to 1, like the "
                "anomaly guide (yellow).",
            )


def has_temperature(guides: Guides, rule: Rule) -> bool:
    """Whether τ has a part in the numbers."""
    return isinstance(guides, TrainedGuides) or isinstance(rule, Published)


def has_detection_feature(guides: Guides, rule: Rule) -> bool:
    """Whether one feature stands for an image: in training, or in the published image score."""
    in_score = isinstance(rule, Published) and rule.image_score in ("cls", "mix")
    return isinstance(guides, TrainedGuides) or in_score

"""The two kinds of guides as artefacts name them: each holds the figures that it has."""

from typing import Annotated, Literal

from pydantic import Field

from spg_pipe.artefacts.record import Count, Record, Seed
from spg_pipe.recipe.params import GuideParams


class ContrastGuides(Record):
    """The difference of class means in a few signed atoms, in closed form (docs/method.md §7)."""

    kind: Literal["contrast"] = "contrast"
    atoms: Count
    """Atoms of each pair, at most."""


class TrainedGuides(Record):
    """Guides that were trained with masks, as published (docs/method.md §3)."""

    kind: Literal["trained"] = "trained"
    epochs: Count
    top_k: Count | None = None
    """Codes of a guide, at most, instead of a sparsity loss."""
    order_seed: Seed | None = None
    """Of the images' order where it is not the detector's own seed."""


Guides = Annotated[ContrastGuides | TrainedGuides, Field(discriminator="kind")]


def guides_of(params: GuideParams) -> ContrastGuides | TrainedGuides:
    """The kind that a recipe asks for."""
    if params.kind == "contrast":
        return ContrastGuides(atoms=params.atoms)
    return TrainedGuides(epochs=params.epochs, top_k=params.top_k)

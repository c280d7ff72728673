"""A recipe with the settings of one run, and what a command's options select from it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spg_pipe.console import Console
from spg_pipe.errors import SpgError
from spg_pipe.params import Params
from spg_pipe.paths import Paths, with_suffix_hash


@dataclass(frozen=True)
class Session:
    """A recipe with the settings of this run, which no artefact depends on."""

    params: Params
    console: Console
    device: str = "auto"
    workers: int | None = None
    variant: bool = False
    """Options differ from params.yaml: new artefacts get a hash in their names."""

    @property
    def paths(self) -> Paths:
        """Where the recipe's artefacts are."""
        return Paths(self.params, image_size(self.params))

    def place(self, path: Path, *content: Any) -> Path:
        """The pipeline's path, or a readable name + 8 hex digits for other options."""
        if not self.variant:
            return path
        return with_suffix_hash(path, hashlib.sha256(repr(content).encode()).hexdigest())


def image_size(params: Params) -> int:
    """S: as the recipe says, or the backbone's default."""
    from spg_pipe.backbones.names import find_alias

    if params.backbone.image_size is not None:
        return params.backbone.image_size
    known = find_alias(params.backbone.alias)
    return known.image_size if known else 448


def training_runs(
    params: Params, aux: str | None, seed: int | None, given: Path | None
) -> list[tuple[str, int]]:
    """(auxiliary, seed) pairs to train: as named, or all of the recipe.

    Raises
    ------
    SpgError
        If one given store or SAE would serve several runs.
    """
    names = [aux] if aux else list(params.auxiliaries)
    runs = [(name, one) for name in names for one in ([seed] if seed is not None else params.seeds)]
    if given is not None and len(runs) > 1:
        raise SpgError(f"{given} serves one run, the recipe has {len(runs)}: add --aux and --seed.")
    return runs


def targets_of(params: Params, split: str | None, aux: str | None) -> list[tuple[str, str | None]]:
    """(target, auxiliary) pairs to score: what `--split` names, or the recipe's directions."""
    if split is not None:
        return [(split, aux)]
    return [(d.target, d.aux) for d in params.directions if aux in (None, d.aux)]

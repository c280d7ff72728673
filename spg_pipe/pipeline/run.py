"""A recipe with the settings of one run, and what a command's options select from it."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.artefacts.files import fingerprint
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.recipe.machine import cpu_workers, local_workers
from spg_pipe.recipe.params import Params
from spg_pipe.recipe.paths import Paths
from spg_pipe.recipe.places import Place

if TYPE_CHECKING:
    from spg_pipe.pipeline.cluster import Workers


CLUSTER = "SPG_PIPE_CLUSTER"
"""What the environment says for `--cluster`: `dvc repro` hands it to its stages, and no fingerprint
and no dependency of a stage knows it."""


@dataclass(frozen=True)
class RecipeRun:
    """A recipe, and how this run works on it."""

    params: Params
    """The recipe with a command's options."""
    console: Console
    """Where messages and progress go."""
    device: str = "auto"
    """As torch names it, or auto: CUDA where there is one."""
    workers: int | None = None
    """Threads that decode images; None: one for each core."""
    cache: str = "auto"
    """Where tokens wait between epochs: auto, device, host or none; never changes a result."""
    base: Params | None = None
    """The recipe without options, whose artefacts have plain names; None: `params` itself."""
    cluster: str | None = None
    """Where units of work are computed: `local[:N]` or the address of a Dask scheduler; None: here.
    It changes no result."""
    options: str = ""
    """Those of the command that make another one work on the same recipe: ` --params FILE`."""

    @property
    def paths(self) -> Paths:
        """Where this run's artefacts are."""
        return Paths(self.params, image_size(self.params), self.base, fingerprint)

    def with_params(self, params: Params) -> "RecipeRun":
        """This run with other settings, whose artefacts lie beside the recipe's."""
        return replace(self, params=params, base=self.base or self.params)

    def narrowed(self, aux: str | None = None, seed: int | None = None) -> "RecipeRun":
        """This run with one auxiliary set, or one seed, where they are named."""
        return self.with_params(self.params.narrowed(aux, seed))

    @contextmanager
    def workers_of_cluster(self) -> "Iterator[Workers | None]":
        """The workers of `cluster`, None without one; an `SpgError` if Dask is not installed."""
        if self.cluster is None:
            yield None
            return
        if importlib.util.find_spec("distributed") is None:
            raise SpgError("--cluster needs Dask: `pip install 'spg-pipe[cluster]'`.")
        from spg_pipe.pipeline.cluster import opened

        with opened(self.cluster, self.console.say) as workers:
            yield workers

    def for_workers(self) -> "RecipeRun":
        """This run as the workers of its cluster take it: quiet, with local weights by their whole
        path, and with a share of this machine's cores."""
        backbone = self.params.backbone
        weights = {"weights": backbone.weights and backbone.weights.resolve()}
        section = {"backbone": backbone.model_copy(update=weights)}
        params, workers = self.params.model_copy(update=section), self.workers
        if workers is None and (number := local_workers(self.cluster)) is not None:
            workers = max(1, cpu_workers(None) // number)
        return replace(self, params=params, console=Console(0), workers=workers, cluster=None)

    def changes(self, section: str) -> bool:
        """Whether an option changed a section of the recipe."""
        base = self.base or self.params
        return bool(getattr(self.params, section) != getattr(base, section))


def image_size(params: Params) -> int:
    """S: as the recipe says, or the backbone's default.

    An `SpgError` if the backbone is unknown.
    """
    from spg_pipe.backbones.load import resolve

    return params.backbone.image_size or resolve(params.backbone.alias).image_size


def require_runs(params: Params, given: Place | None) -> None:
    """Refuse, with an `SpgError`, to train nothing, or several runs from one given store or SAE."""
    _require_there(given)
    if not params.auxiliaries:
        raise SpgError("The recipe has no auxiliaries: nothing to train on. Add one.")
    if given is not None and (count := len(params.auxiliaries) * len(params.seeds)) > 1:
        raise SpgError(f"{given} serves one run, the recipe has {count}: add --aux and --seed.")


def require_set(params: Params, section: str, name: str | None) -> None:
    """Refuse, with an `SpgError`, a name that no set of the section `demo_sets`, … has."""
    known = [made.name for made in getattr(params, section)]
    if name not in (None, *known):
        raise SpgError(
            f"{name!r} is not among the recipe's {section}: {', '.join(known) or 'none'}. "
            f"Name one of them, or add it in the recipe."
        )


def _require_there(given: Place | None) -> None:
    """Before anything is said about how it is to be used; who opens a URL says if it is not."""
    if isinstance(given, Path) and not given.exists():
        raise SpgError(f"{given} does not exist. Check the path; artefacts are below artifacts/.")


def targets_of(
    run: RecipeRun, split: str | None, given: Place | None = None
) -> list[tuple[RecipeRun, str]]:
    """Targets to score, each with its run: what `--split` names, or the recipe's directions.

    An `SpgError` if there is none, or a given store, detector or scores folder does not exist or
    would serve several.
    """
    _require_there(given)
    if split is not None:
        return [(run, split)]
    if not run.params.directions:
        of = f" from {', '.join(run.params.auxiliaries)}" if run.changes("directions") else ""
        raise SpgError(
            f"The recipe has no direction{of}. Add one under `directions:` in it, "
            f"or name a target with --split."
        )
    if given is not None:
        raise SpgError(f"{given} belongs to one target: name it with --split.")
    return [(run.narrowed(way.aux), way.target) for way in run.params.directions]

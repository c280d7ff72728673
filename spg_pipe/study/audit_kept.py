"""Rows of finished jobs, on disk while others run: an audit that is interrupted goes on from them.

A file a job, named by what the job reads, so that nothing of other inputs is taken. Once the table
is written they are removed.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from spg_pipe.artefacts.files import fingerprint, versions, write_text
from spg_pipe.pipeline.checked import checked_detector
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.study.audit_tables import Row
from spg_pipe.study.methods import Stores

_ROWS = TypeAdapter(list[Row])


def kept_path(run: RecipeRun, stores: Stores, aux: str, seed: int) -> Path:
    """Where the rows of an auxiliary set and a seed are kept.

    SAEs and guides as published are not named in it: the first are inputs of the detectors, the
    others are made from the same.

    Raises
    ------
    SpgError
        If a detector is missing or does not fit.
    """
    targets = [way.target for way in run.params.directions if way.aux == aux]
    inputs = {
        "recipe": run.params.model_dump(mode="json"),
        "versions": versions(),
        "auxiliary": aux,
        "seed": seed,
        "stores": [stores[name].fingerprint for name in (aux, *targets)],
        "detectors": [checked_detector(run, aux, of).fingerprint for of in run.params.seeds],
        "photographs": [find_dataset(run.params, name).root.is_dir() for name in targets],
    }
    return run.paths.audit.with_suffix(".finished") / f"{fingerprint(inputs)}.json"


def keep_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows of a finished job."""
    write_text(path, json.dumps(rows))


def kept_rows(path: Path) -> list[Row] | None:
    """The rows of a job that an earlier audit finished; None if there are none that can be read."""
    with suppress(FileNotFoundError, ValidationError):
        return _ROWS.validate_json(path.read_bytes())
    return None


def remove_kept(paths: Iterable[Path]) -> None:
    """Remove what was kept for these jobs, and their folder if it is then empty."""
    for path in paths:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()

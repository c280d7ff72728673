"""`spg-pipe atlas --audit`: are the atoms the reason? Every claim beside controls, in one table.

Over all directions and seeds of a recipe. The same is asked of the SAE's dictionary and of others
(`audit_dictionaries`), each matched to the same guides by the same pursuit.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from spg_pipe.artefacts.files import fingerprint, require_writable, versions, write_text
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.metrics import csv_text
from spg_pipe.pipeline.checked import checked_detector
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.report.tables import plain
from spg_pipe.study.audit_case import Case
from spg_pipe.study.audit_faithfulness import faithfulness
from spg_pipe.study.audit_intervention import intervention
from spg_pipe.study.audit_latents import latents
from spg_pipe.study.audit_stability import exactness, stability
from spg_pipe.study.audit_tables import CONTRAST, TRAINED, Row, tables
from spg_pipe.study.making import guides_job, making_jobs
from spg_pipe.study.methods import PUBLISHED, Stores, auxiliaries, guides_path, stores_of
from spg_pipe.study.runner import Job, run_jobs
from spg_pipe.study.settings import Result, require_default_method, require_whole_images

_ROWS = TypeAdapter(list[Row])


def audit(run: RecipeRun) -> Result:
    """Test what the atoms are said to be, on every direction of a recipe with every seed.

    Guides as published are trained if they are missing; the recipe's SAEs, detectors and stores
    must be there. Jobs run in processes of their own, as those of `compare`; the rows of those that
    are done are kept until the table is written, and taken by the next audit of the same inputs. An
    `SpgError` if the recipe has no directions, or does not use contrast guides and the additive
    rule; if an artefact is missing, or a store has tiles.

    Returns
    -------
    Result
        See `Row`; also written to audit/<name>.csv.
    """
    require_default_method(run.params, "atlas --audit")
    if not run.params.directions:
        raise SpgError("An audit needs `directions:` in the recipe. The recipe spg-plus has some.")
    require_writable(path := run.paths.audit)
    run = replace(run, console=replace(run.console, bars=False))  # bars of jobs would overlap
    require_whole_images(stores := stores_of(run), "atlas --audit")
    cases = {
        (aux, seed): kept_path(run, stores, aux, seed)
        for aux, seed in product(auxiliaries(run, stores), run.params.seeds)
    }
    rows, jobs = list[Row](), [*making_jobs(run, stores, (PUBLISHED,))]
    for (aux, seed), kept in cases.items():
        name, trained = f"audit of {aux}, seed {seed}", guides_job(PUBLISHED, aux)
        if (found := kept_rows(kept)) is None:
            jobs.append(Job(name, partial(audit_case, run, aux, seed, kept), (trained,)))
        else:
            rows += found
            run.console.say(f"Finished before: {name} ({kept})")
    for number, (name, result) in enumerate(run_jobs(jobs, choose_device(run.device)), 1):
        rows += result if isinstance(result, list) else []  # others make guides, and give costs
        run.console.say(f"{number} of {len(jobs)} done: {name}")
    rows.sort(key=lambda row: row[:8])
    about = {
        "backbone": run.params.backbone.alias,
        "method_protocol": run.params.method.protocol,
        "protocol": "exact, maps at a quarter of the size",
    }
    content = [row._asdict() | about for row in rows]
    write_text(path, csv_text(content))
    remove_kept(cases.values())
    run.console.say(f"Audit {run.params.name} → {path}")
    seeds = ", ".join(map(str, run.params.seeds))
    said = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
    shown = tables(rows, f"{said}; seeds {seeds}.")
    return Result(content, "\n\n".join(map(plain, shown)), path)


def audit_case(run: RecipeRun, aux: str, seed: int, kept: Path) -> list[Row]:
    """Every claim about an auxiliary set and a seed; also written to `kept`."""
    case = Case(run, aux, seed)
    published = Detector.load(guides_path(run, PUBLISHED, aux, seed))
    claims = (
        faithfulness(case, case.detector, CONTRAST),
        faithfulness(case, published, TRAINED),
        latents(case),
        intervention(case),
        stability(case),
        exactness(case),
    )
    keep_rows(kept, rows := [row for claim in claims for row in claim])
    return rows


def kept_path(run: RecipeRun, stores: Stores, aux: str, seed: int) -> Path:
    """Where the rows of an auxiliary set and a seed are kept.

    SAEs and guides as published are not named in it: the first are inputs of the detectors, the
    others are made from the same. An `SpgError` if a detector is missing or does not fit.
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

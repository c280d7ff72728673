"""Finished artefacts of a recipe in an MLflow server: a run for each metrics file and the report.

What is there already is known by its fingerprint, a tag, and not sent again.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.detector.metrics_file import read_metrics
from spg_pipe.errors import SpgError, UsageError
from spg_pipe.metrics import MetricsTable
from spg_pipe.pipeline.checked import finished_metrics
from spg_pipe.pipeline.run import RecipeRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

Fill = Callable[["MlflowClient", str], None]
"""Puts into a run of this identity what belongs to it."""
_FINGERPRINT = "spg_pipe.fingerprint"
_MOST_PARAMS, _MOST_METRICS = 100, 1000
"""In one request: MLflow takes no more."""


def track(run: RecipeRun, uri: str | None) -> dict[str, list[str]]:
    """Send what is finished of the recipe to MLflow, in the experiment of the recipe's name.

    Parameters
    ----------
    uri : str, optional
        The server; without it, the environment's MLFLOW_TRACKING_URI.

    Returns
    -------
    dict
        `sent` and `there`: MLflow's identities of the runs that were made, and of those that the
        server had already.

    Raises
    ------
    SpgError
        If nothing is finished, the extra is missing, or the server does not answer or refuses.
    UsageError
        If no server is named.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UsageError("Which server? Add --uri http://HOST:PORT, or set MLFLOW_TRACKING_URI.")
    jobs = [
        (f"{aux} → {target}, seed {seed}", *_metrics_run(run, aux, seed, path))
        for (aux, target, seed), (path, _) in finished_metrics(run).items()
    ]
    if (report := run.paths.report).joinpath("index.html").is_file():
        tags = {_FINGERPRINT: fingerprint(file_digests(report, "."))}
        jobs.append(("report", tags, lambda to, own: to.log_artifacts(own, str(report), "report")))
    result: dict[str, list[str]] = {"sent": [], "there": []}
    with _server(uri) as client:
        experiment = _experiment(client, run.params.name)
        for name, tags, fill in jobs:
            outcome, identity = _once(client, experiment, name, tags, fill)
            result[outcome].append(identity)
            run.console.say(f"{name}: {outcome}, run {identity}")
    return result


@contextmanager
def _server(uri: str) -> Iterator["MlflowClient"]:
    """A client; what fails with it becomes an `SpgError` that names the server."""
    # Before the import: MLflow reports who uses it, and asks a dead server for minutes.
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise SpgError(f"track needs MLflow ({error}): pip install 'spg-pipe[track]'") from None
    try:
        yield MlflowClient(uri)
    except (MlflowException, OSError, ImportError) as error:
        words = str(error).partition("\n")[0]
        if "failed with exception" in words:  # MLflow's own names the address, and its password
            words = "it does not answer. Is it running, and is this its address?"
        shown = re.sub(r"//[^@/]*@", "//", uri)
        raise SpgError(f"MLflow at {shown}: {words.replace(uri, shown)}") from None


def _experiment(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id) if found else str(client.create_experiment(name))


def _once(
    client: "MlflowClient", experiment: str, name: str, tags: dict[str, str], fill: Fill
) -> tuple[str, str]:
    """ "sent" or "there", and the run's identity; one that broke off does not count as there."""
    wanted = f"tags.`{_FINGERPRINT}` = '{tags[_FINGERPRINT]}' and attributes.status = 'FINISHED'"
    if found := client.search_runs([experiment], wanted, max_results=1):
        return "there", str(found[0].info.run_id)
    identity = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
    try:
        fill(client, identity)
    except BaseException:
        client.set_terminated(identity, "FAILED")
        raise
    client.set_terminated(identity)
    return "sent", identity


def _metrics_run(run: RecipeRun, aux: str, seed: int, path: Path) -> tuple[dict[str, str], Fill]:
    """The tags of a metrics file, and what fills its run."""
    record = read_metrics(path)
    source, context = record.provenance, record.context
    tags = {key: str(value) for key, value in vars(context).items()} | {
        "spg_pipe.scores": source.scores,
        "spg_pipe.store": source.store,
        "spg_pipe.detector": str(source.detector),
        _FINGERPRINT: fingerprint(file_digests(path.parent, path.name)),
    }
    detector, sae = run.paths.detector(aux, seed), run.paths.sae(aux, seed)
    files = {
        "metrics": [path, path.with_suffix(".csv")],
        "metrics/curves": sorted((path.parent / "curves").glob(f"{path.stem}-*.csv")),
        "detector": [detector / "config.json", detector / "curve.csv"],
        "sae": [sae / "config.json", sae / "quality.json", sae / "curve.csv"],
    }

    def fill(client: "MlflowClient", identity: str) -> None:
        params, metrics = _params(run), _metrics(record.table)
        for start in range(0, len(params), _MOST_PARAMS):
            client.log_batch(identity, params=params[start : start + _MOST_PARAMS])
        for start in range(0, len(metrics), _MOST_METRICS):
            client.log_batch(identity, metrics=metrics[start : start + _MOST_METRICS])
        for place, paths in files.items():
            for file in paths:
                if file.is_file():
                    client.log_artifact(identity, str(file), place)

    return tags, fill


def _params(run: RecipeRun) -> "list[Param]":
    """The recipe, flat: `sae.k`, …; a list is JSON."""
    from mlflow.entities import Param

    flat: dict[str, str] = {}

    def add(place: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{place}.{key}" if place else str(key), inner)
        else:
            flat[place] = value if isinstance(value, str) else json.dumps(value)

    add("", run.params.model_dump(mode="json", exclude={"published"}))
    return [Param(key, value) for key, value in flat.items()]


def _metrics(table: MetricsTable) -> "list[Metric]":
    """`image_auroc`: the mean; `bottle/image_auroc`: a category's. Undefined ones are left out."""
    from mlflow.entities import Metric

    found = {}
    for row in table.rows:
        # What MLflow takes in a name; "." and ".." would be folders.
        category = re.sub(r"[^\w.\- :/]", "_", row.category).replace("..", "__")
        place = "" if row is table.mean else f"{category}/"
        for name, value in (*row.metrics.items(), *row.thresholds.items()):
            if math.isfinite(value):
                found[f"{place}{name}"] = value
    return [Metric(name, value, 0, 0) for name, value in found.items()]

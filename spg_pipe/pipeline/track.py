"""Finished artefacts of a recipe in an MLflow server: a run for each metrics file and the report.

What is there already is known by its fingerprint, a tag, and not sent again.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.detector.metrics_file import read_metrics
from spg_pipe.errors import SpgError, UsageError
from spg_pipe.metrics import MetricsTable
from spg_pipe.pipeline.checked import finished_metrics
from spg_pipe.pipeline.run import RecipeRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

Fill = Callable[["MlflowClient", str], None]
"""Puts into a run of this identity what belongs to it."""
_FINGERPRINT = "spg_pipe.fingerprint"
_AT_ONCE = 100
"""Parameters in a request: MLflow takes no more."""


def track(run: RecipeRun, uri: str | None) -> dict[str, list[str]]:
    """Send what is finished of the recipe to MLflow, in the experiment of the recipe's name.

    The server is `uri`, or the environment's MLFLOW_TRACKING_URI. Returns `sent` and `there`:
    MLflow's identities of the runs that were made, and of those that the server had already.

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
    jobs: list[tuple[str, dict[str, str], Fill]] = [
        (f"{aux} → {target}, seed {seed}", *_of_metrics(run, aux, seed, path))
        for (aux, target, seed), (path, _) in finished_metrics(run).items()
    ]
    if (report := run.paths.report).joinpath("index.html").is_file():
        tags = {_FINGERPRINT: fingerprint(file_digests(report, "."))}
        jobs.append(
            ("report", tags, lambda to, sent: to.log_artifacts(sent, str(report), "report"))
        )
    result: dict[str, list[str]] = {"sent": [], "there": []}
    with _server(uri) as client:
        earlier = client.get_experiment_by_name(run.params.name)
        experiment = earlier.experiment_id if earlier else client.create_experiment(run.params.name)
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


def _once(
    client: "MlflowClient", experiment: str, name: str, tags: dict[str, str], fill: Fill
) -> tuple[str, str]:
    """ "sent" or "there", and the run's identity; one that broke off does not count as there."""
    wanted = f"tags.`{_FINGERPRINT}` = '{tags[_FINGERPRINT]}' and attributes.status = 'FINISHED'"
    if finished := client.search_runs([experiment], wanted, max_results=1):
        return "there", str(finished[0].info.run_id)
    identity = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
    try:
        fill(client, identity)
    except BaseException:
        with suppress(Exception):  # of a dead server, too: what broke off first is told
            client.set_terminated(identity, "FAILED")
        raise
    client.set_terminated(identity)
    return "sent", identity


def _of_metrics(run: RecipeRun, aux: str, seed: int, path: Path) -> tuple[dict[str, str], Fill]:
    """The tags of a metrics file, and what fills its run."""
    record = read_metrics(path)
    made = {name: getattr(record.provenance, name) for name in ("scores", "store", "detector")}
    tags = {key: str(value) for key, value in {**vars(record.context), **made}.items()}
    tags[_FINGERPRINT] = fingerprint(file_digests(path.parent, path.name))
    detector, sae = run.paths.detector(aux, seed), run.paths.sae(aux, seed)
    files = {
        "metrics": [path, path.with_suffix(".csv")],
        "metrics/curves": sorted((path.parent / "curves").glob(f"{path.stem}-*.csv")),
        "detector": [detector / "config.json", detector / "curve.csv"],
        "sae": [sae / "config.json", sae / "quality.json", sae / "curve.csv"],
    }

    def fill(client: "MlflowClient", identity: str) -> None:
        from mlflow.entities import Metric, Param

        params = [Param(name, value) for name, value in _settings(run).items()]
        metrics = [Metric(name, value, 0, 0) for name, value in _figures(record.table).items()]
        for start in range(0, max(len(params), len(metrics)), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            client.log_batch(identity, metrics[part], params[part])
        for folder, paths in files.items():
            for file in filter(Path.is_file, paths):
                client.log_artifact(identity, str(file), folder)

    return tags, fill


def _settings(run: RecipeRun) -> dict[str, str]:
    """The recipe, flat: `sae.k`, …; what is no text is JSON."""
    import pandas as pd

    content = run.params.model_dump(mode="json", exclude={"published"})
    (flat,) = pd.json_normalize(content).to_dict("records")
    return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in flat.items()}


def _figures(table: MetricsTable) -> dict[str, float]:
    """`image_auroc`: the mean; `bottle/image_auroc`: a category's. Undefined ones are left out."""
    figures: dict[str, float] = {}
    for row in table.rows:
        # What MLflow takes in a name; ".." would be a folder.
        category = re.sub(r"[^\w.\- :/]|\.\.", "_", row.category)
        prefix = "" if row is table.mean else f"{category}/"
        both = {**row.metrics, **row.thresholds}
        figures |= {f"{prefix}{k}": value for k, value in both.items() if math.isfinite(value)}
    return figures

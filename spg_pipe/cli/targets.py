"""Commands that judge targets: scores, metrics, the report, and a person's own images."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from spg_pipe.cli.options import (
    AuxOption,
    BackboneOption,
    BankOption,
    DetectorOption,
    DeviceOption,
    JsonOption,
    NormalFolderOption,
    NormalsOption,
    ParamsOption,
    PlainUsage,
    QuietOption,
    SeedOption,
    SetOption,
    SplitOption,
    StoreOption,
    TilesOption,
    VerboseOption,
    WeightsOption,
    bank_alone,
    bank_params,
    make_run,
    sides_of,
)
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import targets_of
from spg_pipe.recipe.params import DEFAULT_PARAMS


def score(
    split: SplitOption = None,
    aux: AuxOption = None,
    seed: SeedOption = None,
    detector: DetectorOption = None,
    store: StoreOption = None,
    normals: NormalsOption = None,
    bank: BankOption = None,
    backbone: BackboneOption = None,
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Apply a detector to a target's tokens (Scores).

    `--split visa` takes the detector of the recipe's direction whose target is visa.
    """
    from spg_pipe import pipeline

    alone = bank_alone(normals, bank)
    run = make_run(
        params,
        overrides=overrides,
        backbone=backbone,
        device=device,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    score_target = pipeline.score
    if normals is not None:
        if split is None:
            raise SpgError("--normals are normal images of one target: name it with --split.")
        score_target = partial(pipeline.score_few_shot, normals=normals, alone=alone)
    paths = [
        path
        for target, source in targets_of(run.params, split, aux, detector or store)
        for path in score_target(run, target, aux=source, seed=seed, detector=detector, store=store)
    ]
    run.console.result({"scores": [str(path) for path in paths]})


def evaluate(
    split: SplitOption = None,
    aux: AuxOption = None,
    seed: SeedOption = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="A scores folder, instead of the recipe's.")
    ] = None,
    store: StoreOption = None,
    backbone: BackboneOption = None,
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Judge scores with masks and labels: a table per category (Metrics)."""
    from spg_pipe import pipeline
    from spg_pipe.metrics import flat_rows

    run = make_run(
        params,
        overrides=overrides,
        backbone=backbone,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    written: dict[str, Any] = {}
    tables = []
    for target, source in targets_of(run.params, split, aux, scores or store):
        paths = pipeline.evaluate(run, target, aux=source, seed=seed, scores=scores, store=store)
        read = [pipeline.read_metrics(path) for path in paths]
        written |= dict(zip(map(str, paths), map(flat_rows, read), strict=True))
        tables += pipeline.tables_of(run.params, read)
    run.console.result(written, "\n\n".join(tables))


def report(
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a static HTML page: tables, curves, the best and the worst maps."""
    from spg_pipe import pipeline

    run = make_run(params, overrides=overrides, verbose=verbose, quiet=quiet, as_json=as_json)
    path = pipeline.report(run)
    run.console.result({"report": str(path)}, f"Report: {path}")


def predict(
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR", help="A detector's folder.")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER")],
    out: Annotated[Path, typer.Option("--out", help="Where scores.csv and overlays/ go.")] = Path(
        "predictions"
    ),
    normals: NormalFolderOption = None,
    bank: BankOption = None,
    tiles: TilesOption = None,
    weights: WeightsOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score your own images and draw heat maps at their own size."""
    from spg_pipe.pipeline.predict import predict_folder
    from spg_pipe.predict.normals import NormalFolder

    console = Console(0 if quiet else 2 if verbose else 1, as_json)
    alone, settings = bank_alone(normals, bank), bank_params(normals, overrides)
    outcome = predict_folder(
        detector,
        source,
        out,
        tiles=sides_of(tiles) or (),
        weights=weights,
        device=device,
        console=console,
        normals=NormalFolder(normals, settings, alone) if normals else None,
    )
    console.result(outcome.content(), outcome.text())


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (score, evaluate, report):
        app.command()(command)
    app.command(cls=PlainUsage)(predict)

"""Commands that judge targets: scores, metrics, the report, and a person's own images."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from spg_pipe.cli.options import (
    RECIPE,
    AuxOption,
    BankOption,
    Options,
    SeedOption,
    SplitOption,
    StoreOption,
    TilesOption,
    bank_alone,
    bank_params,
    shared,
    sides_of,
)
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.run import targets_of


@shared("backbone", "device", *RECIPE)
def score(
    options: Options,
    split: SplitOption = None,
    aux: AuxOption = None,
    seed: SeedOption = None,
    detector: Annotated[
        Path | None,
        typer.Option("--detector", help="A detector's folder, instead of the recipe's."),
    ] = None,
    store: StoreOption = None,
    normals: Annotated[
        str | None,
        typer.Option(
            "--normals", help="Few-shot: normal images: a store, NAME/train, or a folder."
        ),
    ] = None,
    bank: BankOption = None,
) -> None:
    """Apply a detector to a target's tokens (Scores).

    `--split visa` takes the detector of the recipe's direction whose target is visa.
    """
    from spg_pipe import pipeline

    alone, run = bank_alone(normals, bank), options.run()
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
    run.console.result({"scores": paths})


@shared("backbone", *RECIPE)
def evaluate(
    options: Options,
    split: SplitOption = None,
    aux: AuxOption = None,
    seed: SeedOption = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="A scores folder, instead of the recipe's.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Judge scores with masks and labels: a table per category (Metrics)."""
    from spg_pipe import pipeline
    from spg_pipe.metrics import flat_rows

    run = options.run()
    written: dict[str, Any] = {}
    tables = []
    for target, source in targets_of(run.params, split, aux, scores or store):
        paths = pipeline.evaluate(run, target, aux=source, seed=seed, scores=scores, store=store)
        read = [pipeline.read_metrics(path) for path in paths]
        written |= dict(zip(map(str, paths), map(flat_rows, read), strict=True))
        tables += pipeline.tables_of(run.params, read)
    run.console.result(written, "\n\n".join(tables))


@shared(*RECIPE)
def report(options: Options) -> None:
    """Write a static HTML page: tables, curves, the best and the worst maps."""
    from spg_pipe import pipeline

    run = options.run()
    path = pipeline.report(run)
    run.console.result({"report": path}, f"Report: {path}")


@shared("weights", "overrides", "device", "verbose", "quiet", "as_json")
def predict(
    options: Options,
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR", help="A detector's folder.")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER")],
    out: Annotated[Path, typer.Option("--out", help="Where scores.csv and overlays/ go.")] = Path(
        "predictions"
    ),
    normals: Annotated[
        Path | None,
        typer.Option("--normals", help="Few-shot: a folder with a few normal images of the part."),
    ] = None,
    bank: BankOption = None,
    tiles: TilesOption = None,
) -> None:
    """Score your own images and draw heat maps at their original resolution."""
    from spg_pipe.pipeline.predict import predict_folder
    from spg_pipe.predict.normals import NormalFolder

    console = options.console()
    alone, settings = bank_alone(normals, bank), bank_params(normals, options.overrides)
    outcome = predict_folder(
        detector,
        source,
        out,
        tiles=sides_of(tiles) or (),
        weights=options.weights,
        device=options.device,
        console=console,
        normals=NormalFolder(normals, settings, alone) if normals else None,
    )
    console.result(outcome.content, outcome.text)


COMMANDS = (score, evaluate, report, predict)

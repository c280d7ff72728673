"""The command line. Commands parse and call; torch and friends are imported when one runs."""

import gc
import itertools
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from spg_pipe.cli import decide, deploy, fit, predict, project, tools
from spg_pipe.cli import explain as explain_commands
from spg_pipe.cli.options import (
    BACKBONE,
    RECIPE,
    BankOption,
    CategoriesOption,
    Options,
    OutOption,
    SplitOption,
    StoreOption,
    TilesOption,
    bank_alone,
    names_of,
    shards_of,
    shared,
    sides_of,
)
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import exit_code
from spg_pipe.pipeline.run import require_runs, targets_of

app = typer.Typer(
    name="spg-pipe",
    help="Zero-shot anomaly detection with sparse-projected guides over a feature store.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_versions(wanted: bool) -> None:
    if wanted:
        spg_pipe, torch = metadata.version("spg-pipe"), metadata.version("torch")
        print(f"spg-pipe {spg_pipe} (Python {platform.python_version()}, torch {torch})")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool,
        Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Print the versions of spg-pipe, Python and PyTorch.",
        ),
    ] = False,
) -> None:
    """Options without a command."""


@app.command()
@shared("quiet")
def demo(
    options: Options, folder: Annotated[Path, Option(help="Where it runs.")] = Path("demo_run")
) -> None:
    """Run the whole pipeline on the built-in demo; a second run recomputes nothing."""
    from spg_pipe.pipeline.demo import run_demo

    run_demo(folder, options.console())


@app.command()
@shared("skip_bad", *RECIPE)
def prepare(options: Options, split: SplitOption = None) -> None:
    """List a dataset's images and masks with their content hashes (Manifest)."""
    from spg_pipe.pipeline import datasets, features, synthetic

    run = options.run()
    features.write_demo_sets(run)
    chosen = datasets.datasets_of(run.params, split)
    synthetic.synthesise_sets(run, chosen)
    paths = [features.prepare(run, dataset) for dataset in chosen]
    run.console.result({"manifests": paths, "skipped": features.skipped_in(paths)})


@app.command()
@shared(*BACKBONE, "skip_bad", "device", "workers", "cluster", *RECIPE)
def extract(
    options: Options,
    split: SplitOption = None,
    tiles: TilesOption = None,
    limit: Annotated[
        int | None, Option(min=1, help="Only so many images, spread over all kinds.")
    ] = None,
    categories: CategoriesOption = None,
    out: OutOption = None,
    replace: Annotated[
        bool, Option("--replace", help="Replace a store of other content in the same place.")
    ] = False,
    shards: Annotated[
        str | None,
        Option(metavar="A:B", help="Only the shards A ≤ n < B; `finish` makes the store whole."),
    ] = None,
) -> None:
    """Run the frozen backbone over a dataset and store its tokens (FeatureStore).

    Without --split, every dataset of the recipe. An interrupted extract goes on where it stopped.
    With --limit or --categories the store gets a place of its own: name it with --store later.
    """
    from spg_pipe.pipeline import datasets, features, synthetic

    run = options.run()
    chosen = datasets.datasets_of(run.params, split)
    wanted = names_of("--categories", categories, "bottle,screw")
    if (out or wanted or shards) and len(chosen) != 1:
        raise SpgError("--out, --categories and --shards are of one dataset: add --split NAME.")
    if sides := sides_of(tiles):
        run = features.with_tiles(run, chosen, sides)
    if shards is not None:
        if replace or run.cluster:
            raise SpgError(
                "--shards are this process's part: leave out --replace and --cluster "
                "(SPG_PIPE_CLUSTER)."
            )
        done = features.extract_shards(
            run, chosen[0], shards_of(shards), out=out, limit=limit, categories=wanted
        )
        names = ("path", "written", "there", "held")
        run.console.result({name: getattr(done, name) for name in names})
        return
    features.write_demo_sets(run)
    synthetic.synthesise_sets(run, chosen)
    backbone = None if run.cluster else features.load_backbone(run)
    paths = [
        features.extract(
            run,
            dataset,
            replace=replace,
            out=out,
            backbone=backbone,
            limit=limit,
            categories=wanted,
        )
        for dataset in chosen
    ]
    run.console.result({"stores": paths, "skipped": features.skipped_in(paths)})


@app.command("train-sae")
@shared("backbone", "aux", "seed", "device", "cache", *RECIPE)
def train_sae(options: Options, store: StoreOption = None) -> None:
    """Fit sparse autoencoders on the auxiliary sets' tokens (SparseAutoencoder).

    A killed run goes on from its last checkpoint when the same command is given again.
    """
    from spg_pipe.pipeline import training

    run = options.run()
    require_runs(run.params, store)
    each = itertools.product(run.params.auxiliaries, run.params.seeds)
    paths = [training.train_sae(run, aux, seed, store=store) for aux, seed in each]
    run.console.result({"saes": paths})


@app.command("train-guides")
@shared("backbone", "aux", "seed", "device", "cache", *RECIPE)
def train_guides(
    options: Options,
    store: StoreOption = None,
    sae: Annotated[Path | None, Option(help="An SAE's folder, instead of the recipe's.")] = None,
) -> None:
    """Fit the guides with the auxiliary sets' masks (Detector).

    A killed run goes on from its last checkpoint when the same command is given again.
    """
    from spg_pipe.pipeline import training

    run = options.run()
    require_runs(run.params, store or sae)
    paths, seeds = [], run.params.seeds
    for aux in run.params.auxiliaries:
        paths += training.train_guides_together([run], aux, seeds, store=store, sae=sae)
    run.console.result({"detectors": paths})


@app.command()
@shared("backbone", "aux", "seed", "ignore", "device", "cluster", *RECIPE)
def score(
    options: Options,
    split: SplitOption = None,
    detector: Annotated[
        Path | None, Option(help="A detector's folder, instead of the recipe's.")
    ] = None,
    store: StoreOption = None,
    normals: Annotated[
        str | None, Option(help="Few-shot: normal images: a store, NAME/train, or a folder.")
    ] = None,
    bank: BankOption = None,
) -> None:
    """Apply a detector to a target's tokens (Scores).

    `--split visa` takes the detector of the recipe's direction whose target is visa.
    """
    from spg_pipe.pipeline import targets

    alone, run = bank_alone(normals, bank), options.run()
    if normals is not None and split is None:
        raise SpgError("--normals are normal images of one target: name it with --split.")
    if normals is not None and options.cluster is not None:
        raise SpgError(
            "Banks of --normals are no work for a cluster: leave out --cluster (SPG_PIPE_CLUSTER)."
        )
    if options.ignore and normals:
        raise SpgError("--ignore and --normals do not go together in score: leave out one.")
    if alone and (detector or options.aux or options.seed is not None):
        raise SpgError("--bank alone uses no detector: leave out --detector, --aux and --seed.")
    paths = []
    for each, target in targets_of(run, split, detector or store):
        paths += targets.score(
            each,
            target,
            detector=detector,
            store=store,
            normals=normals,
            alone=alone,
            ignore=options.ignore,
        )
    run.console.result({"scores": paths})


@app.command()
@shared("backbone", "aux", "seed", "cluster", *RECIPE)
def evaluate(
    options: Options,
    split: SplitOption = None,
    scores: Annotated[Path | None, Option(help="A scores folder, instead of the recipe's.")] = None,
    store: StoreOption = None,
    calibration: Annotated[
        Path | None, Option(metavar="FILE", help="Also judge at its thresholds (`calibrate`).")
    ] = None,
) -> None:
    """Judge scores with masks and labels: a table per category (Metrics)."""
    from spg_pipe.metrics import flat_rows
    from spg_pipe.pipeline import targets

    run = options.run()
    written: dict[str, Any] = {}
    tables = []
    for each, target in targets_of(run, split, scores or store):
        paths = targets.evaluate(each, target, scores=scores, store=store, calibration=calibration)
        read = [targets.read_metrics(path) for path in paths]
        written |= dict(zip(map(str, paths), map(flat_rows, read), strict=True))
        tables += targets.tables_of(run.params, read)
    run.console.result(written, "\n\n".join(tables))


@app.command()
@shared(*RECIPE)
def report(options: Options) -> None:
    """Write a static HTML page: tables, curves, the best and the worst maps."""
    from spg_pipe.pipeline import targets

    run = options.run()
    run.console.result({"report": targets.report(run)})  # which says so to people


for command in (
    *predict.COMMANDS,
    *decide.COMMANDS,
    *fit.COMMANDS,
    *deploy.COMMANDS,
    *explain_commands.COMMANDS,
    *tools.COMMANDS,
    project.init,
):
    app.command()(command)
app.add_typer(project.recipe, name="recipe")


def main() -> None:
    """Entry point: exit codes 0 done, 1 failed with a message, 2 wrong usage."""
    # Importing PyTorch and timm makes a million objects, none of which is garbage: looking for it
    # after each 700 takes 1 s of 4.
    gc.set_threshold(100_000, 50, 100)
    raise SystemExit(exit_code(app))

"""The command line. Commands parse and call; torch and friends are imported when one runs."""

from pathlib import Path
from typing import Annotated

import typer

from spg_pipe.cli import targets, tools
from spg_pipe.cli.options import (
    RECIPE,
    AuxOption,
    CategoriesOption,
    Options,
    SeedOption,
    SplitOption,
    StoreOption,
    TilesOption,
    names_of,
    shared,
    sides_of,
)
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import exit_code
from spg_pipe.pipeline.datasets import datasets_of
from spg_pipe.pipeline.run import training_runs

app = typer.Typer(
    name="spg-pipe",
    help="Zero-shot anomaly detection with sparse-projected guides over a feature store.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
@shared("quiet")
def demo(
    options: Options,
    folder: Annotated[Path, typer.Option("--folder", help="Where it runs.")] = Path("demo_run"),
) -> None:
    """Run the whole pipeline on the built-in demo; a second run recomputes nothing."""
    from spg_pipe.pipeline.demo import run_demo

    run_demo(folder, options.console())


@app.command()
@shared("skip_bad", *RECIPE)
def prepare(options: Options, split: SplitOption = None) -> None:
    """List a dataset's images and masks with their content hashes (Manifest)."""
    from spg_pipe import pipeline

    run = options.run()
    pipeline.write_demo_sets(run)
    chosen = datasets_of(run.params, split)
    pipeline.synthesise_sets(run, chosen)
    paths = [pipeline.prepare(run, dataset) for dataset in chosen]
    run.console.result({"manifests": paths, "skipped": pipeline.skipped_in(paths)})


@app.command()
@shared("backbone", "weights", "image_size", "layers", "skip_bad", "device", "workers", *RECIPE)
def extract(
    options: Options,
    split: SplitOption = None,
    tiles: TilesOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Only so many images, spread over all kinds."),
    ] = None,
    categories: CategoriesOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the store here.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a store of other content in the same place.")
    ] = False,
) -> None:
    """Run the frozen backbone over a dataset and store its tokens (FeatureStore).

    Without --split, every dataset of the recipe. An interrupted extract goes on where it stopped.
    With --limit or --categories the store gets a place of its own: name it with --store later.
    """
    from spg_pipe import pipeline

    run = options.run()
    chosen = datasets_of(run.params, split)
    wanted = names_of("--categories", categories, "bottle,screw")
    if (out or wanted) and len(chosen) != 1:
        raise SpgError("--out and --categories are of one dataset: add --split NAME.")
    pipeline.write_demo_sets(run)
    pipeline.synthesise_sets(run, chosen)
    if sides := sides_of(tiles):
        run = pipeline.with_tiles(run, chosen, sides)
    backbone = pipeline.load_backbone(run)
    paths = [
        pipeline.extract(
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
    run.console.result({"stores": paths, "skipped": pipeline.skipped_in(paths)})


@app.command("train-sae")
@shared("backbone", "device", "cache", *RECIPE)
def train_sae(
    options: Options,
    aux: AuxOption = None,
    seed: SeedOption = None,
    store: StoreOption = None,
) -> None:
    """Fit sparse autoencoders on the auxiliary sets' tokens (SparseAutoencoder).

    A killed run goes on from its last checkpoint when the same command is given again.
    """
    from spg_pipe import pipeline

    run = options.run()
    runs = training_runs(run.params, aux, seed, store)
    paths = [
        pipeline.train_sae(run, name, each, store=store)
        for name, seeds in runs.items()
        for each in seeds
    ]
    run.console.result({"saes": paths})


@app.command("train-guides")
@shared("backbone", "device", "cache", *RECIPE)
def train_guides(
    options: Options,
    aux: AuxOption = None,
    seed: SeedOption = None,
    store: StoreOption = None,
    sae: Annotated[
        Path | None, typer.Option("--sae", help="An SAE's folder, instead of the recipe's.")
    ] = None,
) -> None:
    """Fit the guides with the auxiliary sets' masks (Detector).

    A killed run goes on from its last checkpoint when the same command is given again.
    """
    from spg_pipe import pipeline

    run = options.run()
    paths = []
    for name, seeds in training_runs(run.params, aux, seed, store or sae).items():
        paths += pipeline.train_guides_together([run], name, seeds, store=store, sae=sae)
    run.console.result({"detectors": paths})


for command in (*targets.COMMANDS, *tools.COMMANDS):
    app.command()(command)
app.add_typer(tools.recipe, name="recipe")


def main() -> None:
    """Entry point: exit codes 0 done, 1 failed with a message, 2 wrong usage."""
    raise SystemExit(exit_code(app))

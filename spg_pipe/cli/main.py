"""The command line. Commands parse and call; torch and friends are imported when one runs."""

from pathlib import Path
from typing import Annotated

import typer

from spg_pipe.cli.options import (
    AuxOption,
    BackboneOption,
    Cache,
    CacheOption,
    DeviceOption,
    JsonOption,
    LayersOption,
    ParamsOption,
    QuietOption,
    SeedOption,
    SetOption,
    SizeOption,
    SkipBadOption,
    SplitOption,
    StoreOption,
    TilesOption,
    VerboseOption,
    WeightsOption,
    WorkersOption,
    make_run,
    names_of,
    sides_of,
)
from spg_pipe.cli.targets import register as register_targets
from spg_pipe.cli.tools import register
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console, exit_code
from spg_pipe.pipeline.datasets import datasets_of
from spg_pipe.pipeline.run import training_runs
from spg_pipe.recipe.params import DEFAULT_PARAMS

app = typer.Typer(
    name="spg-pipe",
    help="Zero-shot anomaly detection with sparse-projected guides over a feature store.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where it runs.")] = Path("demo_run"),
    quiet: QuietOption = False,
) -> None:
    """Run the whole pipeline on the built-in demo; a second run recomputes nothing."""
    from spg_pipe.pipeline.demo import run_demo

    run_demo(folder, Console(0 if quiet else 1))


@app.command()
def prepare(
    split: SplitOption = None,
    skip_bad: SkipBadOption = False,
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """List a dataset's images and masks with their content hashes (Manifest)."""
    from spg_pipe import pipeline

    run = make_run(
        params,
        overrides=overrides,
        skip_bad=skip_bad,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    pipeline.write_demo_sets(run)
    chosen = datasets_of(run.params, split)
    pipeline.synthesise_sets(run, chosen)
    paths = [pipeline.prepare(run, d) for d in chosen]
    run.console.result(
        {"manifests": [str(path) for path in paths], "skipped": pipeline.skipped_in(paths)}
    )


@app.command()
def extract(
    split: SplitOption = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    image_size: SizeOption = None,
    layers: LayersOption = None,
    tiles: TilesOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Only so many images, spread over all kinds."),
    ] = None,
    categories: Annotated[
        str | None, typer.Option("--categories", help="Only these, comma-separated: bottle,screw.")
    ] = None,
    skip_bad: SkipBadOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the store here.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a store of other content in the same place.")
    ] = False,
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the frozen backbone over a dataset and store its tokens (FeatureStore).

    Without --split, every dataset of the recipe. An interrupted extract goes on where it stopped.
    With --limit or --categories the store gets a place of its own: name it with --store later.
    """
    from spg_pipe import pipeline

    run = make_run(
        params,
        overrides=overrides,
        backbone=backbone,
        weights=weights,
        image_size=image_size,
        layers=layers,
        skip_bad=skip_bad,
        device=device,
        workers=workers,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    chosen = datasets_of(run.params, split)
    if out is not None and len(chosen) != 1:
        raise SpgError("--out names one store: add --split NAME.")
    if categories is not None and len(chosen) != 1:
        raise SpgError("--categories are those of one dataset: add --split NAME.")
    wanted = (
        names_of("--categories", categories, "bottle,screw") if categories is not None else None
    )
    pipeline.write_demo_sets(run)
    pipeline.synthesise_sets(run, chosen)
    if sides := sides_of(tiles):
        run = pipeline.with_tiles(run, chosen, sides)
    backbone_ready = pipeline.load_backbone(run)
    paths = [
        pipeline.extract(
            run,
            d,
            replace=replace,
            out=out,
            backbone=backbone_ready,
            limit=limit,
            categories=wanted,
        )
        for d in chosen
    ]
    run.console.result(
        {"stores": [str(path) for path in paths], "skipped": pipeline.skipped_in(paths)}
    )


@app.command("train-sae")
def train_sae(
    aux: AuxOption = None,
    seed: SeedOption = None,
    store: StoreOption = None,
    backbone: BackboneOption = None,
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    cache: CacheOption = Cache.AUTO,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit sparse autoencoders on the auxiliary sets' tokens (SparseAutoencoder).

    A killed run goes on from its last checkpoint when the same command is given again.
    """
    from spg_pipe import pipeline

    run = make_run(
        params,
        overrides=overrides,
        backbone=backbone,
        device=device,
        cache=cache,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    jobs = training_runs(run.params, aux, seed, store)
    paths = []
    for name in dict.fromkeys(name for name, _ in jobs):
        seeds = [one for other, one in jobs if other == name]
        paths += pipeline.train_saes([run], name, seeds, store=store)
    run.console.result({"saes": [str(path) for path in paths]})


@app.command("train-guides")
def train_guides(
    aux: AuxOption = None,
    seed: SeedOption = None,
    store: StoreOption = None,
    sae: Annotated[
        Path | None, typer.Option("--sae", help="An SAE's folder, instead of the recipe's.")
    ] = None,
    backbone: BackboneOption = None,
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    cache: CacheOption = Cache.AUTO,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the guides with the auxiliary sets' masks (Detector).

    A killed run goes on from its last checkpoint when the same command is given again.
    """
    from spg_pipe import pipeline

    run = make_run(
        params,
        overrides=overrides,
        backbone=backbone,
        device=device,
        cache=cache,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    runs = training_runs(run.params, aux, seed, store or sae)
    paths = []
    for name in dict.fromkeys(name for name, _ in runs):
        seeds = [one for other, one in runs if other == name]
        paths += pipeline.train_guides_together([run], name, seeds, store=store, sae=sae)
    run.console.result({"detectors": [str(path) for path in paths]})


register_targets(app)
register(app)


def main() -> None:
    """Entry point: exit codes 0 done, 1 failed with a message, 2 wrong usage."""
    raise SystemExit(exit_code(app))

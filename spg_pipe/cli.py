"""The command line. Commands parse and call; torch and friends are imported when one runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spg_pipe.cli_options import (
    AuxOption,
    BackboneOption,
    DetectorOption,
    DeviceOption,
    JsonOption,
    LayersOption,
    ParamsOption,
    QuietOption,
    SeedOption,
    SetOption,
    SizeOption,
    SplitOption,
    StoreOption,
    VerboseOption,
    WeightsOption,
    WorkersOption,
    make_session,
)
from spg_pipe.console import Console, run
from spg_pipe.errors import SpgError
from spg_pipe.find import datasets_of
from spg_pipe.params import DEFAULT_PARAMS, load_params
from spg_pipe.session import targets_of, training_runs

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
    from spg_pipe.demo import run_demo

    run_demo(folder, Console(0 if quiet else 1))


@app.command()
def prepare(
    split: SplitOption = None,
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """List a dataset's images and masks with their content hashes (Manifest)."""
    from spg_pipe import pipeline

    session = make_session(
        params, overrides=overrides, verbose=verbose, quiet=quiet, as_json=as_json
    )
    pipeline.write_demo_sets(session)
    paths = [pipeline.prepare(session, d) for d in datasets_of(session.params, split)]
    session.console.result({"manifests": [str(path) for path in paths]})


@app.command()
def extract(
    split: SplitOption = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    image_size: SizeOption = None,
    layers: LayersOption = None,
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
    """
    from spg_pipe import pipeline

    session = make_session(
        params,
        overrides=overrides,
        backbone=backbone,
        weights=weights,
        image_size=image_size,
        layers=layers,
        device=device,
        workers=workers,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    chosen = datasets_of(session.params, split)
    if out is not None and len(chosen) != 1:
        raise SpgError("--out names one store: add --split NAME.")
    pipeline.write_demo_sets(session)
    paths = [pipeline.extract(session, d, replace=replace, out=out) for d in chosen]
    session.console.result({"stores": [str(path) for path in paths]})


@app.command("train-sae")
def train_sae(
    aux: AuxOption = None,
    seed: SeedOption = None,
    store: StoreOption = None,
    backbone: BackboneOption = None,
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit sparse autoencoders on the auxiliary sets' tokens (SparseAutoencoder)."""
    from spg_pipe import pipeline

    session = make_session(
        params,
        overrides=overrides,
        backbone=backbone,
        device=device,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    runs = training_runs(session.params, aux, seed, store)
    paths = [pipeline.train_sae(session, name, one, store=store) for name, one in runs]
    session.console.result({"saes": [str(path) for path in paths]})


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
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the guides with the auxiliary sets' masks (Detector)."""
    from spg_pipe import pipeline

    session = make_session(
        params,
        overrides=overrides,
        backbone=backbone,
        device=device,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    runs = training_runs(session.params, aux, seed, store or sae)
    paths = [pipeline.train_guides(session, name, one, store=store, sae=sae) for name, one in runs]
    session.console.result({"detectors": [str(path) for path in paths]})


@app.command()
def score(
    split: SplitOption = None,
    aux: AuxOption = None,
    seed: SeedOption = None,
    detector: DetectorOption = None,
    store: StoreOption = None,
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

    session = make_session(
        params,
        overrides=overrides,
        backbone=backbone,
        device=device,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    paths = [
        path
        for target, source in targets_of(session.params, split, aux)
        for path in pipeline.score(
            session, target, aux=source, seed=seed, detector=detector, store=store
        )
    ]
    session.console.result({"scores": [str(path) for path in paths]})


@app.command()
def evaluate(
    split: SplitOption = None,
    aux: AuxOption = None,
    seed: SeedOption = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="A scores folder, instead of the recipe's.")
    ] = None,
    backbone: BackboneOption = None,
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Judge scores with masks and labels: a table per category (Metrics)."""
    from spg_pipe import pipeline
    from spg_pipe.report.text import text_table

    session = make_session(
        params,
        overrides=overrides,
        backbone=backbone,
        verbose=verbose,
        quiet=quiet,
        as_json=as_json,
    )
    written: dict[str, Any] = {}
    tables = []
    for target, source in targets_of(session.params, split, aux):
        for path in pipeline.evaluate(session, target, aux=source, seed=seed, scores=scores):
            rows = pipeline.read_metrics(path)
            written[str(path)] = rows
            tables.append(text_table(rows))
    session.console.result(written, "\n\n".join(tables))


@app.command()
def report(
    params: ParamsOption = DEFAULT_PARAMS,
    overrides: SetOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a static HTML page: tables, curves, the best and the worst maps."""
    from spg_pipe import pipeline

    session = make_session(
        params, overrides=overrides, verbose=verbose, quiet=quiet, as_json=as_json
    )
    path = pipeline.report(session)
    session.console.result({"report": str(path)}, f"Report: {path}")


@app.command()
def predict(
    detector: Annotated[Path, typer.Argument(help="A detector's folder.")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER")],
    out: Annotated[Path, typer.Option("--out", help="Where scores.csv and overlays/ go.")] = Path(
        "predictions"
    ),
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score your own images and draw heat maps at their own size."""
    from spg_pipe.predict import predict_folder

    console = Console(0 if quiet else 2 if verbose else 1, as_json)
    content, text = predict_folder(
        detector, source, out, weights=weights, device=device, console=console
    )
    console.result(content, text)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A store, SAE, detector or scores folder.")],
    as_json: JsonOption = False,
) -> None:
    """Say what an artefact holds."""
    from spg_pipe.inspection import as_text
    from spg_pipe.inspection import inspect as look

    content = look(path)
    Console(json=as_json).result(content, as_text(content))


@app.command()
def verify(
    store: Annotated[Path, typer.Argument(help="A feature store.")],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Re-read every byte of a store; name each damaged image and shard."""
    from spg_pipe.store.verify import require_intact
    from spg_pipe.store.verify import verify as check

    console = Console(0 if quiet else 1, as_json)
    with console.progress("verify", "files") as update:
        result = check(store, update)
    if as_json:
        console.result(
            {"files": result.files, "images": result.images, "faults": list(result.faults)}
        )
    require_intact(store, result)
    console.say(f"{store}: {result.files} files and {result.images} images are intact")


recipe_app = typer.Typer(
    help="List recipes, or make one the recipe in force.", no_args_is_help=True
)
app.add_typer(recipe_app, name="recipe")


@recipe_app.command("list")
def recipe_list(as_json: JsonOption = False) -> None:
    """The recipes that come with the project."""
    from spg_pipe.recipes import list_recipes

    found = list_recipes()
    text = "\n".join(f"{name:16} {comment}" for name, comment in found)
    Console(json=as_json).result(dict(found), text)


@recipe_app.command("use")
def recipe_use(
    name: Annotated[str, typer.Argument(help="A recipe's name; see `spg-pipe recipe list`.")],
    mvtec: Annotated[Path | None, typer.Option("--mvtec", help="Folder of MVTec AD.")] = None,
    visa: Annotated[Path | None, typer.Option("--visa", help="Folder of VisA.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder of other data.")] = None,
    params: ParamsOption = DEFAULT_PARAMS,
) -> None:
    """Write params.yaml from a recipe, with the folders of your data filled in."""
    from spg_pipe.recipes import use_recipe

    given = {"mvtec": mvtec, "visa": visa, "data": data}
    use_recipe(name, {k: v for k, v in given.items() if v is not None}, params)
    Console().say(f"{params} is now the recipe {name}. Run `dvc repro`.")


@app.command()
def backbones(as_json: JsonOption = False) -> None:
    """Names of backbones, their licences, and whether their weights need access."""
    from dataclasses import asdict

    from spg_pipe.backbones.names import list_backbones

    rows = list_backbones()
    lines = []
    for info in rows:
        access = "installed" if info.offline else "gated download" if info.gated else "download"
        layers = ",".join(info.layers) or "last"
        lines.append(
            f"{info.alias:26} {info.image_size:4} px  layers {layers:8} {access:15} "
            f"{info.licence}\n{'':26} {info.note}"
        )
    lines.append(
        "Any timm model works by its name, any open_clip ViT as open_clip:NAME/PRETRAINED."
    )
    Console(json=as_json).result([asdict(info) for info in rows], "\n".join(lines))


@app.command()
def datasets(
    params: ParamsOption = DEFAULT_PARAMS,
    as_json: JsonOption = False,
) -> None:
    """The recipe's datasets and whether they are on disk; the layouts that are understood."""
    from dataclasses import asdict

    from spg_pipe.datasets import describe_layouts

    layouts = describe_layouts()
    lines = []
    rows = []
    if params.exists():
        for d in load_params(params).datasets:
            there = d.root.is_dir()
            rows.append(
                {
                    "name": d.name,
                    "layout": d.layout,
                    "split": d.split,
                    "root": str(d.root),
                    "on_disk": there,
                }
            )
            lines.append(
                f"{d.name:16} {d.layout:7} {d.split:6} {d.root}"
                + ("" if there else "  (not on disk)")
            )
    for layout in layouts:
        lines.append(f"\nLayout {layout.name}: {layout.summary}\n{layout.sketch}")
    content = {"datasets": rows, "layouts": [asdict(layout) for layout in layouts]}
    Console(json=as_json).result(content, "\n".join(lines))


def main() -> None:
    """Entry point: exit codes 0 done, 1 failed with a message, 2 wrong usage."""
    raise SystemExit(run(app))

"""Commands beside the stages: artefacts, backbones, datasets, sweeps."""

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from spg_pipe.cli.options import (
    BACKBONE,
    RECIPE,
    AuxOption,
    CategoriesOption,
    Options,
    StoreArgument,
    names_of,
    shared,
)
from spg_pipe.errors import SpgError
from spg_pipe.recipe.data import KINDS
from spg_pipe.recipe.params import OPTIONS, SyntheticSet, load_params, validated
from spg_pipe.recipe.places import place_of


@shared("as_json")
def inspect(
    options: Options,
    path: Annotated[
        Any,
        Argument(parser=place_of, metavar="PATH", help="A store, SAE, detector or scores folder."),
    ],
    pca: Annotated[
        Path | None, Option(metavar="FILE", help="Draw a store's tokens as colours: a PNG.")
    ] = None,
    images: Annotated[
        str | None, Option(help="With --pca: rows, 0,5,7, or how many [default: 6].")
    ] = None,
    layer: Annotated[str | None, Option(help="With --pca: one layer [default: all].")] = None,
) -> None:
    """Say what an artefact holds."""
    from spg_pipe.pipeline.inspection import as_text
    from spg_pipe.pipeline.inspection import inspect as look
    from spg_pipe.pipeline.pca import draw_pca
    from spg_pipe.store.reader import FeatureStore

    if pca is None and (images is not None or layer is not None):
        raise SpgError("--images and --layer choose what --pca draws: add --pca FILE.png.")
    drawn = {"pca": draw_pca(FeatureStore(path), pca, images, layer)} if pca is not None else {}
    content = look(path) | drawn
    options.console().result(content, as_text(content))


@shared(*BACKBONE, "device", *RECIPE)
def plan(
    options: Options,
    images: Annotated[int, Option(min=1, help="Of the set to be planned.")],
    side: Annotated[int, Option(min=16, max=8192, help="Of its images, pixels.")] = 1024,
    workers: Annotated[
        int, Option(min=1, help="Also the time of so many workers of one core each.")
    ] = 1,
    categories: Annotated[
        int, Option(min=1, metavar="NUMBER", help="How many it has: evaluate takes one at a time.")
    ] = 1,
) -> None:
    """Say what a set of images would cost in each stage: disk, memory, time, requests.

    Rates are measured on this machine, in about a minute, with the recipe's backbone and settings.
    """
    from dataclasses import asdict
    from tempfile import TemporaryDirectory

    from spg_pipe.pipeline.plan import as_text
    from spg_pipe.pipeline.plan import plan as planned
    from spg_pipe.pipeline.probe import Probe

    if categories > images:
        raise SpgError(f"--categories {categories} are more than --images {images}: say fewer.")
    run = options.run()
    run.console.say("Measuring this machine with made-up images …")
    with TemporaryDirectory(prefix="spg-plan-") as folder:
        rates, setting = Probe(run, side, Path(folder)).rates()
    plans = planned(rates, setting, images, workers=workers, categories=categories)
    content = {"images": images, "stages": [asdict(each) for each in plans]}
    run.console.result(content | {"rates": asdict(rates)}, as_text(plans, workers))


@shared("quiet", "as_json")
def verify(options: Options, store: StoreArgument) -> None:
    """Re-read every byte of a store; name each damaged image and shard."""
    from spg_pipe.store.reader import FeatureStore
    from spg_pipe.store.verify import require_intact
    from spg_pipe.store.verify import verify as check

    console = options.console()
    with console.progress("verify", "files") as update:
        faults = check(store, update)
    opened = FeatureStore(store, check_files=False)
    files, images = len(opened.entries), len(opened)
    console.result({"files": files, "images": images, "faults": faults})
    require_intact(store, faults)
    console.say(f"{store}: {files} files and {images} images are intact")


@shared("quiet", "as_json")
def finish(options: Options, store: StoreArgument) -> None:
    """Make a store whole whose shards `extract --shards` has made; needs no images."""
    from spg_pipe.store.finish import finish_store

    console, made = options.console(), finish_store(store)
    console.result({"store": store, "images": len(made)})
    console.say(f"{store} is complete: {len(made)} images")


@shared("as_json")
def backbones(options: Options) -> None:
    """Names of backbones, their licences, and whether their weights need access."""
    from dataclasses import asdict

    from spg_pipe.backbones.names import list_backbones
    from spg_pipe.backbones.packaged import PACKAGES

    rows, lines = [], []
    for info in list_backbones():
        package = PACKAGES.get(info.alias)
        installed = package is not None and package.find() is not None
        rows.append(asdict(info) | {"installed": installed})
        access = "gated download" if info.gated else "download"
        if package is not None:
            access = "installed" if installed else f"package, not installed: {package.install} "
        layers = ",".join(info.layers) or "last"
        lines.append(
            f"{info.alias:26} {info.image_size:4} px  layers {layers:8} {access:15} "
            f"{info.licence}\n{'':26} {info.note}"
        )
    lines.append(
        "Any timm model works by its name, any open_clip ViT as open_clip:NAME/PRETRAINED."
    )
    options.console().result(rows, "\n".join(lines))


@shared("params", "as_json")
def datasets(options: Options) -> None:
    """The recipe's datasets and whether they are on disk; the layouts that are understood."""
    from spg_pipe.datasets.layouts.catalogue import LAYOUTS

    rows, lines = [], []
    for d in load_params(options.params).datasets if options.params.exists() else ():
        row = d.model_dump(include={"name", "layout", "split", "root"})
        rows.append(row | {"on_disk": d.root.is_dir()})
        missing = "" if d.root.is_dir() else "  (not on disk)"
        lines.append(f"{d.name:16} {d.layout:7} {d.split:6} {d.root}{missing}")
    layouts, shown = LAYOUTS.values(), ("name", "summary", "sketch", "own_images")
    lines += [f"\nLayout {each.name}: {each.summary}\n{each.sketch}" for each in layouts]
    content = {
        "datasets": rows,
        "layouts": [{k: getattr(each, k) for k in shown} for each in layouts],
    }
    options.console().result(content, "\n".join(lines))


@shared("skip_bad", "workers", "quiet", "as_json")
def synthesise(
    options: Options,
    source: Annotated[Path, Argument(metavar="SOURCE", help="A folder of normal images.")],
    out: Annotated[Path, Argument(metavar="OUT", help="The new set's folder.")],
    layout: Annotated[str, Option(help="The source's: folder, mvtec, visa, csv, coco.")] = "folder",
    split: Annotated[str, Option(help="The source's: its normal images are taken.")] = "all",
    categories: CategoriesOption = None,
    seed: Annotated[int, Option(min=0, help="Another seed, other defects.")] = 0,
    per_image: Annotated[int, Option(min=1, help="Anomalous copies of each normal image.")] = 1,
    kinds: Annotated[str, Option(help="Kinds of defects, in turn.")] = ",".join(KINDS),
) -> None:
    """Paint defects on normal images: an auxiliary set with masks, of layout synthetic."""
    from spg_pipe.pipeline import synthetic

    content: dict[str, object] = {"layout": layout, "split": split, "seed": seed}
    content |= {"name": "synthetic", "root": out, "source": source, "per_image": per_image}
    content["categories"] = names_of("--categories", categories, "bottle,screw")
    content["kinds"] = names_of("--kinds", kinds, ",".join(KINDS))
    made, console = validated(SyntheticSet, content, OPTIONS), options.console()
    result = synthetic.synthesise(made, console, skip_bad=options.skip_bad, workers=options.workers)
    console.result(result)


@shared(*RECIPE)
def track(
    options: Options,
    to: Annotated[Literal["mlflow"], Option("--to", help="Where to.")],
    uri: Annotated[
        str | None, Option(help="The server [default: the environment's MLFLOW_TRACKING_URI].")
    ] = None,
) -> None:
    """Send the recipe's finished metrics, settings and report to an experiment tracker, once."""
    from spg_pipe.pipeline.track import track as send

    run = options.run()
    run.console.result(send(run, uri))


@shared("device", "cache", *RECIPE)
def sweep(
    options: Options,
    one_at_a_time: Annotated[
        bool, Option("--one-at-a-time", help="Change one setting at a time: an ablation.")
    ] = False,
) -> None:
    """Run every combination of the recipe's `sweep:` and compare them in one table."""
    from spg_pipe.study.sweep import sweep

    run = options.run()
    result = sweep(run, one_at_a_time=one_at_a_time)
    run.console.result({"sweep": result.path, "rows": result.rows}, result.table)


@shared("device", "cache", *RECIPE)
def choose(options: Options, aux: AuxOption = None) -> None:
    """Choose among the recipe's `choose:` on held-out parts of the auxiliary sets alone."""
    from spg_pipe.study.choose import choose

    run = options.run()
    names = run.params.narrowed(aux).auxiliaries
    choices = [choose(run, name) for name in names]
    content = [{"chosen": c.values, "recipe": c.path, "rows": c.rows} for c in choices]
    tables = "\n\n".join(choice.table for choice in choices)
    run.console.result(dict(zip(names, content, strict=True)), tables)


@shared("device", "cache", *RECIPE)
def compare(
    options: Options,
    normals: Annotated[int, Option(min=1, help="Normal images of few-shot methods.")] = 4,
) -> None:
    """Compare the recipe's method with the published one and with baselines in one table."""
    from spg_pipe.study.compare import compare

    run = options.run()
    result = compare(run, normals=normals)
    run.console.result({"comparison": result.path, "rows": result.rows}, result.table)


@shared("device", "cache", *RECIPE)
def league(options: Options) -> None:
    """Judge the recipe's `choose:` on every direction, and choose without each target in turn."""
    from spg_pipe.study.league import league

    run = options.run()
    result = league(run)
    run.console.result({"league": result.path, "rows": result.rows}, result.table)


COMMANDS = (
    inspect,
    verify,
    plan,
    finish,
    backbones,
    datasets,
    synthesise,
    track,
    sweep,
    choose,
    league,
    compare,
)

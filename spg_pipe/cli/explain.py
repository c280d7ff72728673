"""Commands that say why: the atoms behind a decision."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spg_pipe.cli.options import (
    RECIPE,
    VIEW,
    BankOption,
    NormalsOption,
    Options,
    SplitOption,
    StoreOption,
    TilesOption,
    ask_of,
    shared,
)
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.run import RecipeRun, targets_of


@shared("backbone", "weights", "aux", "seed", "device", *VIEW, *RECIPE)
def explain(
    options: Options,
    detector: Annotated[
        Path | None, Argument(metavar="[DETECTOR]", help="A detector's folder.")
    ] = None,
    source: Annotated[Path | None, Argument(metavar="[IMAGE|FOLDER]")] = None,
    split: SplitOption = None,
    out: Annotated[Path | None, Option(help="Where images' results go [explanations].")] = None,
    atoms: Annotated[
        int | None, Option(min=1, help="List only the N largest contributions [all].")
    ] = None,
    pictures: Annotated[
        int | None, Option(min=0, help="Draw only the N highest scores [all; of a split 8].")
    ] = None,
    normals: NormalsOption = None,
    bank: BankOption = None,
    tiles: TilesOption = None,
    store: StoreOption = None,
) -> None:
    """Say why images have their scores: components, atoms and their contributions.

    DETECTOR IMAGE|FOLDER: your own images. --split NAME: a finished store. --json prints lines.
    """
    from spg_pipe.pipeline import explain as explaining
    from spg_pipe.pipeline.predict import predict_images

    console = options.console()
    told = console.line if options.as_json else lambda _: None
    of_images: dict[str, object] = {"--out": out, "--weights": options.weights, "--tiles": tiles}
    of_images |= {"--normals": normals, "--bank": bank}
    of_images |= {f"--{name}": getattr(options, name) or None for name in VIEW}
    of_splits: dict[str, object] = {"--split": split, "--store": store, "--aux": options.aux}
    of_splits |= {"--seed": options.seed, "--backbone": options.backbone}
    others = of_images if source is None else of_splits
    if wrong := [name for name, value in others.items() if value is not None]:
        raise SpgError(
            f"{wrong[0]} goes with "
            + ("your own images" if source is None else "a dataset of the recipe")
            + ": give either `spg-pipe explain DETECTOR FOLDER` or `spg-pipe explain --split NAME`."
        )
    if source is None and detector and (options.aux or options.seed is not None):
        raise SpgError("--aux and --seed choose a detector, and DETECTOR is one: leave out either.")
    if source is not None and detector is not None:
        chosen = out or Path("explanations")
        ask = ask_of(options, detector, [str(source)], chosen, normals, bank, tiles)
        ask = replace(ask, overlays=0, explained=True, pictures=pictures, atoms=atoms)
        predict_images(ask, console, lambda line: told(line.why))
        return
    for each, target in targets_of(options.run(), split, detector or store):
        explaining.explain_split(
            each,
            target,
            detector=detector,
            store=store,
            atoms=atoms,
            pictures=pictures,
            listener=told,
        )


@shared("backbone", "aux", "seed", "device", *RECIPE)
def atlas(
    options: Options,
    detector: Annotated[
        Path | None, Argument(metavar="[DETECTOR]", help="A detector's folder [the recipe's].")
    ] = None,
    split: Annotated[
        list[str] | None,
        Option(help="Describe on this set; repeatable [the auxiliary set and its targets]."),
    ] = None,
    every: Annotated[bool, Option("--all", help="Every latent, not only the guides'.")] = False,
    sae: Annotated[Path | None, Option(help="The detector's SAE, instead of the recipe's.")] = None,
    out: Annotated[Path | None, Option(help="Write the atlas here.")] = None,
    audit: Annotated[
        bool, Option("--audit", help="Test what is said of atoms on all directions, instead.")
    ] = False,
) -> None:
    """Describe what each atom of a detector looks for: tables, crops and a page (Atlas)."""
    from spg_pipe.pipeline.atlas import atlas as make

    if detector is not None and (options.aux is not None or options.seed is not None):
        raise SpgError(
            "--aux and --seed choose among the recipe's detectors, and DETECTOR is one already. "
            "Leave them out, or leave DETECTOR out."
        )
    run = options.run()
    if audit:
        _audit(
            run,
            {"DETECTOR": detector, "--split": split, "--all": every, "--sae": sae, "--out": out},
        )
        return
    paths = make(run, detector=detector, splits=split or (), sae=sae, out=out, every=every)
    text = "\n".join(f"Atlas: {path / 'index.html'}" for path in paths)
    run.console.result({"atlases": paths}, text)


def _audit(run: RecipeRun, others: Mapping[str, object]) -> None:
    if wrong := [name for name, value in others.items() if value]:
        raise SpgError(
            f"--audit is about the detectors of all directions of the recipe, and {wrong[0]} is "
            "not for it. Give one of them; --aux and --seed narrow an audit."
        )
    from spg_pipe.study.audit import audit

    result = audit(run)
    run.console.result({"audit": result.path, "rows": result.rows}, result.table)


COMMANDS = (explain, atlas)

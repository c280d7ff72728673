"""Commands that say why: the atoms behind a decision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spg_pipe.cli.options import (
    RECIPE,
    BankOption,
    Options,
    OwnImages,
    SplitOption,
    StoreOption,
    TilesOption,
    shared,
)
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.run import RecipeRun, targets_of


@shared("backbone", "weights", "aux", "seed", "device", *RECIPE)
def explain(
    options: Options,
    detector: Annotated[
        Path | None, Argument(metavar="[DETECTOR]", help="A detector's folder.")
    ] = None,
    source: Annotated[Path | None, Argument(metavar="[IMAGE|FOLDER]")] = None,
    split: SplitOption = None,
    out: Annotated[Path | None, Option(help="Where images' results go [explanations].")] = None,
    atoms: Annotated[
        int | None, Option(min=1, help="List only so many contributions an image [all].")
    ] = None,
    pictures: Annotated[
        int | None, Option(min=0, help="Of the highest scores [all; of a split 8].")
    ] = None,
    normals: Annotated[
        Path | None, Option(help="Few-shot: a folder with a few normal images of the part.")
    ] = None,
    bank: BankOption = None,
    tiles: TilesOption = None,
    store: StoreOption = None,
) -> None:
    """Say why images have their scores: components, atoms and their contributions.

    DETECTOR IMAGE|FOLDER: your own images. --split NAME: a finished store, without a backbone, by
    the recipe's detectors or by DETECTOR. --json prints each image's line.
    """
    from spg_pipe.pipeline import explain as explaining

    console = options.console()
    told = console.line if options.as_json else lambda _: None
    if source is None:
        of_images = {
            "--out": out,
            "--weights": options.weights,
            "--normals": normals,
            "--tiles": tiles,
        }
        if wrong := [name for name, value in of_images.items() if value is not None]:
            raise SpgError(
                f"{wrong[0]} is for your own images: name the detector and them, as in "
                "`spg-pipe explain DETECTOR FOLDER`."
            )
        for each, target in targets_of(options.run(), split, detector or store):
            explaining.explain_split(
                each,
                target,
                detector=detector,
                store=store,
                atoms=atoms,
                pictures=pictures,
                told=told,
            )
        return
    if detector is None or split is not None or store is not None:
        raise SpgError("Give a detector and images, or --split NAME, not both.")
    own = OwnImages(detector, source, out or Path("explanations"), normals, bank, tiles)
    ask = own.ask(options)
    explaining.explain_images(ask, console, atoms=atoms, pictures=pictures, told=told)


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
        bool, Option("--audit", help="Instead: test such claims on all directions of the recipe.")
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

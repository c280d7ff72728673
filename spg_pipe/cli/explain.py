"""Commands that say why: the atoms behind a decision."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spg_pipe.cli.options import (
    RECIPE,
    BankOption,
    Options,
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
    from spg_pipe.pipeline.predict import Ask
    from spg_pipe.predict.normals import NormalFolder

    console = options.console()
    told = console.line if options.as_json else lambda _: None
    if source is None:
        own = {"--out": out, "--weights": options.weights, "--normals": normals, "--tiles": tiles}
        if wrong := [name for name, value in own.items() if value is not None]:
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
    alone, settings = bank_alone(normals, bank), bank_params(normals, options.overrides)
    ask = Ask(
        detector,
        source,
        out or Path("explanations"),
        weights=options.weights,
        device=options.device,
        tiles=sides_of(tiles) or (),
        normals=NormalFolder(normals, settings, alone) if normals else None,
    )
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
) -> None:
    """Describe what each atom of a detector looks for: tables, crops and a page (Atlas)."""
    from spg_pipe.pipeline.atlas import atlas as make

    run = options.run()
    paths = make(run, detector=detector, splits=split or (), sae=sae, out=out, every=every)
    text = "\n".join(f"Atlas: {path / 'index.html'}" for path in paths)
    run.console.result({"atlases": paths}, text)


COMMANDS = (explain, atlas)

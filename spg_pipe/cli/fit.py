"""`fit`: what is made from one's own images."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spg_pipe.cli.options import VIEW, Options, TilesOption, ask_of, shared
from spg_pipe.errors import SpgError

_OF_A_DETECTOR = ("backbone", "image_size", "seed", "skip_bad", "workers")
_OF_A_BANK = ("weights", "overrides", *VIEW)


@shared(*_OF_A_DETECTOR, *_OF_A_BANK, "device", "verbose", "quiet", "as_json")
def fit(
    options: Options,
    source: Annotated[
        Path, Argument(metavar="FOLDER|DETECTOR", help="Labelled images; or see --normals.")
    ],
    out: Annotated[
        Path | None, Option(help="Where all goes [fit_FOLDER; of a bank required].")
    ] = None,
    layout: Annotated[
        str | None, Option(help="FOLDER's, see `spg-pipe datasets` [folder].")
    ] = None,
    normals: Annotated[
        Path | None, Option(help="A bank for DETECTOR, of a few normal images of the part.")
    ] = None,
    tiles: TilesOption = None,
) -> None:
    """Make a detector from labelled images: good/ and a folder for each kind of defect.

    Says how it judges images that it has not learned from. The same command goes on after a kill.
    With --normals and --out: fit a bank to normal images, once, for `predict --normals` (Bank).
    """
    _require_of(options, bank=normals is not None, layout=layout, tiles=tiles)
    console = options.console()
    if normals is not None:
        from spg_pipe.pipeline.own_goods import fit_goods

        if out is None:
            raise SpgError("Where does the bank go? Add --out FOLDER.")
        fit_goods(ask_of(options, source, [], out, normals, None, tiles), console)
        return
    from spg_pipe.pipeline.fit import Labelled
    from spg_pipe.pipeline.fit import fit as make

    given = {name: getattr(options, name) for name in ("backbone", "image_size", "skip_bad")}
    seed = Labelled.seed if options.seed is None else options.seed
    asked = Labelled(source, layout, out, seed=seed, **given)
    make(asked, console, device=options.device, workers=options.workers)


def _require_of(options: Options, *, bank: bool, layout: object, tiles: object) -> None:
    """No option of the other thing."""
    names = _OF_A_DETECTOR if bank else _OF_A_BANK
    given = {name: getattr(options, name) for name in names}
    given |= {"layout": layout} if bank else {"tiles": tiles}
    for name, value in given.items():
        if value is not None and value is not False:
            option = "--set" if name == "overrides" else f"--{name.replace('_', '-')}"
            raise SpgError(
                f"{option} is of a detector, not of a bank: leave it out, or leave out --normals."
                if bank
                else f"{option} is of a bank: add --normals. A detector with other settings is "
                "made by a recipe and the single commands, as the README shows."
            )


COMMANDS = (fit,)

"""`fit`: what is made from one's own images."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spg_pipe.cli.options import VIEW, Options, TilesOption, ask_of, shared


@shared("weights", "overrides", *VIEW, "device", "verbose", "quiet", "as_json")
def fit(
    options: Options,
    detector: Annotated[Path, Argument(metavar="DETECTOR", help="A detector's folder.")],
    normals: Annotated[Path, Option(help="A folder with a few normal images of the part.")],
    out: Annotated[Path, Option(help="Write the bank here.")],
    tiles: TilesOption = None,
) -> None:
    """Fit a bank to normal images of a part, once, for `predict --normals` (Bank)."""
    from spg_pipe.pipeline.own_goods import fit_goods

    fit_goods(ask_of(options, detector, [], out, normals, None, tiles), options.console())


COMMANDS = (fit,)

"""`fit`: what is made from one's own images."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spg_pipe.cli.options import Options, TilesOption, bank_params, shared, sides_of


@shared("weights", "overrides", "device", "verbose", "quiet", "as_json")
def fit(
    options: Options,
    detector: Annotated[Path, Argument(metavar="DETECTOR", help="A detector's folder.")],
    normals: Annotated[Path, Option(help="A folder with a few normal images of the part.")],
    out: Annotated[Path, Option(help="Write the bank here.")],
    tiles: TilesOption = None,
) -> None:
    """Fit a bank to normal images of a part, once, for `predict --normals` (Bank)."""
    from spg_pipe.pipeline.own_goods import fit_goods
    from spg_pipe.predict.normals import NormalFolder

    given = NormalFolder(normals, bank_params(normals, options.overrides))
    fit_goods(
        detector,
        given,
        out,
        options.console(),
        weights=options.weights,
        tiles=sides_of(tiles) or (),
        device=options.device,
    )


COMMANDS = (fit,)

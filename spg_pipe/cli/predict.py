"""`predict`: the command."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spg_pipe.cli.options import (
    DECIDING,
    VIEW,
    BankOption,
    Options,
    TilesOption,
    ask_of,
    shared,
)


@shared("weights", "overrides", *VIEW, "device", *DECIDING, "verbose", "quiet", "as_json")
def predict(
    options: Options,
    detector: Annotated[Path, Argument(metavar="DETECTOR", help="A detector's folder.")],
    sources: Annotated[
        list[str],
        Argument(metavar="SOURCE...", help="Images, folders, quoted globs, @LIST; or - (paths)."),
    ],
    out: Annotated[Path, Option(help="Where results go.")] = Path("predictions"),
    normals: Annotated[
        Path | None, Option(help="Few-shot: a folder with a few normal images of the part.")
    ] = None,
    bank: BankOption = None,
    tiles: TilesOption = None,
    explain: Annotated[
        bool, Option("--explain", help="Also say why: explanations.jsonl and explained/.")
    ] = False,
    strict: Annotated[
        bool, Option("--strict", help="Stop at the first image that cannot be judged.")
    ] = False,
) -> None:
    """Score your own images and draw heat maps at their original resolution.

    A run that was stopped goes on when the same command is given again. --json prints a line an
    image as it is done.
    """
    from spg_pipe.pipeline.predict import predict_images

    console = options.console()
    told = console.line if options.as_json else lambda _: None
    ask = ask_of(options, detector, sources, out, normals, bank, tiles)
    ask = replace(ask, explained=explain, strict=strict, decide=options.deciding())
    predict_images(ask, console, lambda line: told(line.text))


COMMANDS = (predict,)

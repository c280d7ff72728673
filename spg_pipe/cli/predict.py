"""`predict`: the command."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spg_pipe.cli.options import (
    DECIDING,
    VIEW,
    BankOption,
    NormalsOption,
    Options,
    TilesOption,
    ask_of,
    shared,
)
from spg_pipe.errors import UsageError
from spg_pipe.recipe.data import whole_number


@shared("weights", "overrides", *VIEW, "device", *DECIDING, "verbose", "quiet", "as_json")
def predict(
    options: Options,
    detector: Annotated[Path, Argument(metavar="DETECTOR", help="A detector's folder.")],
    sources: Annotated[
        list[str],
        Argument(metavar="SOURCE...", help="Images, folders, globs, @LIST; - (paths); a video."),
    ],
    out: Annotated[str, Option(metavar="FOLDER", help="Where results go.")] = "predictions",
    normals: NormalsOption = None,
    bank: BankOption = None,
    tiles: TilesOption = None,
    explain: Annotated[
        bool, Option("--explain", help="Also say why: explanations.jsonl and explained/.")
    ] = False,
    overlays: Annotated[
        str, Option(metavar="all|none|top:N", help="Heat maps of which images.")
    ] = "all",
    maps: Annotated[bool, Option("--maps", help="Also write maps/: PNG of 16 bits.")] = False,
    masks: Annotated[
        bool, Option("--masks", help="Also write masks/: what is above the pixel threshold.")
    ] = False,
    coco: Annotated[
        bool, Option("--coco", help="Also write the regions as COCO JSON, for annotation tools.")
    ] = False,
    report: Annotated[
        bool, Option("--report", help="Also make report/: a page to look at, without a network.")
    ] = False,
    every: Annotated[
        int, Option(min=1, help="Judge only every Nth image or frame, from the first on.")
    ] = 1,
    limit: Annotated[int | None, Option(min=1, help="Judge at most N.")] = None,
    strict: Annotated[
        bool, Option("--strict", help="Stop at the first image that cannot be judged.")
    ] = False,
) -> None:
    """Score your own images and draw heat maps at their original resolution.

    A run that was stopped goes on when the same command is given again. --json prints a line an
    image as it is done.
    """
    from spg_pipe.pipeline.predict import predict_images

    if not out.strip():
        raise UsageError("--out is empty: expected a folder.")
    console = options.console()
    told = console.line if options.as_json else lambda _: None
    ask = ask_of(options, detector, sources, Path(out), normals, bank, tiles)
    ask = replace(ask, explained=explain, strict=strict, overlays=_most(overlays))
    ask = replace(ask, maps=maps, masks=masks, coco=coco, every=every, limit=limit, report=report)
    ask = replace(ask, decide=options.deciding())
    predict_images(ask, console, lambda line: told(line.text))


def _most(overlays: str) -> int | None:
    """How many images `--overlays` means; None: all. A `UsageError` if it cannot be read."""
    kind, _, number = overlays.partition(":")
    if overlays in ("all", "none"):
        return None if overlays == "all" else 0
    most = whole_number(number)
    if kind != "top" or not most:
        raise UsageError(f"--overlays {overlays!r}: expected all, none or top:N, as top:20.")
    return most


COMMANDS = (predict,)

"""Commands that take a detector to where it works."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from spg_pipe.deploy.formats import Format

_THRESHOLDS = ("calibration", "no_calibration", "threshold", "pixel_threshold")
_DECIDING = tuple(name for name in DECIDING if name != "fdr")
"""A server has no end, at which a batch could be decided."""


@shared("weights", "overrides", *_THRESHOLDS, "verbose", "quiet", "as_json")
def export(
    options: Options,
    detector: Annotated[Path, Argument(metavar="DETECTOR", help="A detector's folder.")],
    out: Annotated[Path, Argument(metavar="OUT", help="The folder that is written.")],
    normals: NormalsOption = None,
    bank: BankOption = None,
    openvino: Annotated[
        bool, Option("--openvino", help="Also write openvino/: model.xml and model.bin.")
    ] = False,
    torch: Annotated[
        bool, Option("--torch", help="Also write model.pt2, for torch.export.load.")
    ] = False,
) -> None:
    """Write a detector as ONNX: image in, map, score and decision out; runs without PyTorch.

    Resizing is inside. Beside it a runner and a card; all is held to `predict` before it is kept.
    """
    from spg_pipe.pipeline.export import export_detector

    ask = ask_of(options, detector, [], out, normals, bank, None)
    ask = replace(ask, decide=options.deciding())
    chosen: list[Format] = ["onnx"]
    chosen += ["openvino"] if openvino else []
    chosen += ["torch"] if torch else []
    export_detector(ask, chosen, options.console())


@shared("weights", "overrides", *VIEW, "device", *_DECIDING, "verbose", "quiet")
def serve(
    options: Options,
    detector: Annotated[Path, Argument(metavar="DETECTOR", help="A detector's folder.")],
    host: Annotated[str, Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[str | None, Option(help="Of the model [DETECTOR's last folder].")] = None,
    normals: NormalsOption = None,
    bank: BankOption = None,
    tiles: TilesOption = None,
    max_mb: Annotated[int, Option(min=1, max=2000, help="Of a request's body.")] = 50,
    max_megapixels: Annotated[int, Option(min=1, help="Of an image.")] = 50,
    queue: Annotated[int, Option(min=1, max=10_000, help="Images in hand at once.")] = 32,
    body_seconds: Annotated[
        float, Option(min=0.1, max=3600, help="For a request's body to arrive.")
    ] = 10,
    seconds: Annotated[float, Option(min=0.1, max=3600, help="For an answer.")] = 30,
) -> None:
    """Serve a detector over HTTP: Open Inference Protocol, image files, a page."""
    from spg_pipe.deploy.serving.bounds import MILLION, Bounds
    from spg_pipe.pipeline import serve as server

    ask = replace(
        ask_of(options, detector, (), Path(), normals, bank, tiles), decide=options.deciding()
    )
    bounds = Bounds(max_mb * MILLION, max_megapixels * MILLION, body_seconds, seconds, queue)
    server.serve(ask, options.console(), bounds, host, port, name)


COMMANDS = (export, serve)

"""Commands that take a detector to where it works."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from spg_pipe.cli.options import BankOption, NormalsOption, Options, ask_of, shared

if TYPE_CHECKING:
    from spg_pipe.deploy.formats import Format

_DECIDING = ("calibration", "no_calibration", "threshold", "pixel_threshold")


@shared("weights", "overrides", *_DECIDING, "verbose", "quiet", "as_json")
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
    from dataclasses import replace

    from spg_pipe.pipeline.export import export_detector

    ask = ask_of(options, detector, [], out, normals, bank, None)
    ask = replace(ask, decide=options.deciding())
    chosen: list[Format] = ["onnx"]
    chosen += ["openvino"] if openvino else []
    chosen += ["torch"] if torch else []
    export_detector(ask, chosen, options.console())


COMMANDS = (export,)

"""`calibrate`: from known images to thresholds."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from spg_pipe.cli.options import BankOption, Options, TilesOption, ask_of, shared
from spg_pipe.errors import SpgError

Method = Literal["conformal", "tolerance", "f1-max", "recall", "manual"]
"""As `decision` has it, which is not loaded before it is needed."""


@shared("weights", "overrides", "device", "verbose", "quiet", "as_json")
def calibrate(
    options: Options,
    detector: Annotated[Path, Argument(metavar="DETECTOR", help="A detector's folder.")],
    sources: Annotated[
        list[Path],
        Argument(metavar="GOOD...", help="Normal images, folders; or good/ beside defects."),
    ],
    method: Annotated[Method, Option(help="How thresholds are found.")] = "conformal",
    false_alarms: Annotated[
        float | None, Option(min=1e-6, max=0.9, help="Their rate among normal images [0.05].")
    ] = None,
    confidence: Annotated[
        float | None, Option(min=0.5, max=0.9999, help="Of the method tolerance [0.95].")
    ] = None,
    recall: Annotated[
        float | None, Option(min=1e-6, max=1, help="The floor of the method recall [0.95].")
    ] = None,
    threshold: Annotated[float | None, Option(help="Of scores, for the method manual.")] = None,
    pixel_threshold: Annotated[
        float | None, Option(min=0, max=1, help="Of maps, for the method manual.")
    ] = None,
    by_folder: Annotated[
        bool, Option("--by-folder", help="Thresholds for each first folder below GOOD.")
    ] = False,
    normals: Annotated[
        Path | None, Option(help="Few-shot: a folder with a few normal images of the part.")
    ] = None,
    bank: BankOption = None,
    tiles: TilesOption = None,
    valid_days: Annotated[
        int | None, Option(min=1, help="Refused after so many days [no limit].")
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="FILE", help="The file [DETECTOR-calibration.json].")
    ] = None,
) -> None:
    """Set the thresholds of `predict` from images that are known to be good.

    With the methods f1-max and recall also from images with defects, in folders as for training.
    """
    from spg_pipe.decision.limits import Asked
    from spg_pipe.pipeline.calibrate import HowToCalibrate, in_words
    from spg_pipe.pipeline.calibrate import calibrate as make

    takes = {
        "--false-alarms": (false_alarms, ("conformal", "tolerance")),
        "--confidence": (confidence, ("tolerance",)),
        "--recall": (recall, ("recall",)),
        "--threshold": (threshold, ("manual",)),
        "--pixel-threshold": (pixel_threshold, ("manual",)),
    }
    for option, (value, methods) in takes.items():
        if value is not None and method not in methods:
            raise SpgError(
                f"{option} is of the method {' and '.join(methods)}, not of {method}: add --method "
                f"{methods[0]}, or leave it out."
            )
    if method == "manual" and threshold is None and pixel_threshold is None:
        raise SpgError("--method manual needs --threshold, --pixel-threshold or both.")
    console = options.console()
    names = [str(source) for source in sources]
    file = out or detector  # no image lies in a detector's folder
    ask = ask_of(options, detector, names, file, normals, bank, tiles)
    asked = Asked(
        method,
        false_alarms=0.05 if false_alarms is None else false_alarms,
        confidence=0.95 if confidence is None else confidence,
        recall=0.95 if recall is None else recall,
        threshold=threshold,
        pixel_threshold=pixel_threshold,
    )
    path, made = make(ask, HowToCalibrate(asked, by_folder, valid_days, out), console)
    content = {"calibration": path} | made.model_dump(mode="json")
    console.result(content, in_words(path, made, detector))


COMMANDS = (calibrate,)

"""`calibrate`: from known images to thresholds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from spg_pipe.cli.options import (
    VIEW,
    BankOption,
    NormalsOption,
    Options,
    TilesOption,
    ask_of,
    shared,
)
from spg_pipe.errors import SpgError

if TYPE_CHECKING:
    from spg_pipe.decision.limits import Asked

BY_HAND = ("threshold", "pixel_threshold")
Method = Literal["conformal", "tolerance", "f1-max", "recall", "manual"]
"""As `decision` has it, which is not loaded before it is needed."""


@shared("weights", "overrides", *VIEW, "device", *BY_HAND, "verbose", "quiet", "as_json")
def calibrate(
    options: Options,
    detector: Annotated[Path, Argument(metavar="DETECTOR", help="A detector's folder.")],
    sources: Annotated[
        list[Path] | None,
        Argument(metavar="[GOOD...]", help="Normal images, folders; or good/ beside defects."),
    ] = None,
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
    by_folder: Annotated[
        bool, Option("--by-folder", help="Thresholds for each first folder below GOOD.")
    ] = False,
    normals: NormalsOption = None,
    bank: BankOption = None,
    tiles: TilesOption = None,
    valid_days: Annotated[
        int | None,
        Option(min=1, max=36_500, help="Refused after so many days [no limit]."),
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="FILE", help="The file [DETECTOR-calibration.json].")
    ] = None,
) -> None:
    """Set the thresholds of `predict` from images that are known to be good.

    With the methods f1-max and recall also from images with defects, in folders as for training.
    Without GOOD, from the normal images of --normals themselves, each judged without itself.
    """
    from spg_pipe.pipeline.calibrate import HowToCalibrate, in_words
    from spg_pipe.pipeline.calibrate import calibrate as make

    asked = _asked(options, method, false_alarms, confidence, recall)
    names = [str(source) for source in sources or ()]
    file = out or detector  # no image lies in a detector's folder
    ask = ask_of(options, detector, names, file, normals, bank, tiles)
    console = options.console()
    path, made = make(ask, HowToCalibrate(asked, by_folder, valid_days, out), console)
    content = {"calibration": path} | made.model_dump(mode="json")
    console.result(content, in_words(path, made, ask))


def _asked(
    options: Options,
    method: Method,
    false_alarms: float | None,
    confidence: float | None,
    recall: float | None,
) -> "Asked":
    """What is to be found; an `SpgError` if an option is of another method."""
    from spg_pipe.decision.limits import Asked

    given = {
        "false_alarms": (false_alarms, ("conformal", "tolerance")),
        "confidence": (confidence, ("tolerance",)),
        "recall": (recall, ("recall",)),
        "threshold": (options.threshold, ("manual",)),
        "pixel_threshold": (options.pixel_threshold, ("manual",)),
    }
    for name, (value, methods) in given.items():
        if value is not None and method not in methods:
            raise SpgError(
                f"--{name.replace('_', '-')} is of the method {' and '.join(methods)}, not of "
                f"{method}: add --method {methods[0]}, or leave it out."
            )
    known = {name: value for name, (value, _) in given.items() if value is not None}
    if method == "manual" and not known:
        raise SpgError("--method manual needs --threshold, --pixel-threshold or both.")
    return Asked(method, **known)


COMMANDS = (calibrate,)

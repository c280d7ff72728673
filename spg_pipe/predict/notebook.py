"""A detector in a notebook: an image in, a result that draws itself out (docs/notebook.md)."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from spg_pipe.bank.fitted import MAKE, FittedBank
from spg_pipe.decision.calibration import Calibration, Judging, Limits, by_hand, place_beside
from spg_pipe.detector import model
from spg_pipe.errors import SpgError, counted
from spg_pipe.images.in_memory import InMemory, pixels_of
from spg_pipe.predict.items import Item, Reading, sha256_of
from spg_pipe.predict.normals import NormalFolder, load_bank
from spg_pipe.predict.pictures import overlay_picture
from spg_pipe.predict.predictor import Predictor, load_predictor
from spg_pipe.predict.result import Result, result_of
from spg_pipe.predict.view import Fit, View, Viewing
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import BankParams


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector finds in an image; a notebook shows it as a heat map over the image."""

    result: Result
    """All that is said of the image, as a line of predictions.jsonl has it."""
    map: np.ndarray
    """(H, W) float32 in [0, 1], at the image's size."""
    pixels: np.ndarray
    """(H, W, 3) uint8 or uint16: the image."""
    shown: tuple[float, float]
    """Values of the map that get the darkest and the brightest colour."""

    def __repr__(self) -> str:
        found = self.result
        says = [f"score {found.score:.4f}", *([found.decision] if found.decision else [])]
        if found.pixel_threshold is not None:
            says.append(counted(len(found.regions) + found.regions_left_out, "region"))
        return f"Prediction({', '.join(says)}, {found.height}×{found.width})"

    def _repr_png_(self) -> bytes:
        """The heat map, for a notebook."""
        threshold = self.result.pixel_threshold
        return overlay_picture(self.pixels, self.map, self.shown, threshold, "PNG")


@dataclass(frozen=True, eq=False, repr=False)
class Detector:
    """A detector that predicts: the artefact, and how images are shown to it and decided."""

    artefact: model.Detector
    """What `score_store`, `explain` and other functions take for a detector."""
    device: str
    weights: Path | None
    tiles: tuple[int, ...]
    bank: FittedBank | None
    alone: bool
    reading: Reading
    calibration: Calibration | None

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        device: str = "auto",
        weights: Path | None = None,
        tiles: Sequence[int] = (),
        fit: Fit = "squash",
        bank: Path | str | None = None,
        alone: bool = False,
        calibration: Path | str | Literal[False] | None = None,
    ) -> "Detector":
        """Read a detector's folder; its backbone is loaded with the first image, once.

        An `SpgError` if a file is missing or damaged, there is no such device, or a named bank or
        calibration was made for another judging or no longer holds.

        Parameters
        ----------
        device : str
            `auto`: cuda where there is one.
        weights : Path, optional
            A file of the backbone's weights, if it was made with one.
        tiles : sequence of int
            Sides in pixels at which images are cut into tiles; none: they are taken whole.
        fit : "squash" | "letterbox" | "crop"
            How an image is made square.
        bank : Path, optional
            Of a few normal images, as `spg-pipe fit --normals` writes it.
        alone : bool
            The bank judges without the guides.
        calibration : Path or False, optional
            Thresholds that `spg-pipe calibrate` made; False: none. Default: those beside the
            bank, or without one the detector; where these do not hold, a warning says why, and
            nothing is decided.
        """
        made, where = model.Detector.load(Path(path)), choose_device(device)
        viewing = Viewing(fit)
        fitted = _fitted(bank, made, viewing, where, alone=alone)
        judging = Judging(
            detector=made.fingerprint,
            tiles=tuple(tiles),
            fit=fit,
            bank=fitted.record.fingerprint if fitted else None,
            alone=alone,
            white=fitted.record.white if fitted else None,
        )
        decides = _deciding(calibration, place_beside(Path(bank or path)), judging)
        exif = made.record.protocol.exif_of_own_images
        judged = decides.judging if decides else judging
        how = Reading(exif, judged.white, strict_white=True, viewing=viewing)
        return cls(made, where, weights, judging.tiles, fitted, alone, how, decides)

    def __repr__(self) -> str:
        by = self.calibration
        return (
            f"Detector({self.artefact.fingerprint[:8]}, {self.artefact.record.backbone.seen_at}, "
            f"{f'decided by {by.method}, made {by.made}' if by else 'no calibration'})"
        )

    @cached_property
    def predictor(self) -> Predictor:
        """The detector with its backbone, loaded when it is first asked for.

        An `SpgError` if the backbone cannot be had, or is not the detector's or the bank's.
        """
        if self.artefact.record.backbone.family == "arrays":
            raise SpgError(
                "The detector was made from arrays of tokens, so nothing can turn an image into "
                "such tokens. Judge arrays with `store_of_arrays` and `score_store`."
            )
        say = partial(print, file=sys.stderr)
        predictor = load_predictor(self.artefact, self.tiles, self.weights, self.device, say)
        return replace(predictor, bank=self.bank, alone=self.alone)

    def predict(
        self,
        image: InMemory | Path | str,
        *,
        ignored: np.ndarray | None = None,
        group: str = "",
        threshold: float | None = None,
        pixel_threshold: float | None = None,
    ) -> Prediction:
        """Judge an image.

        An `SpgError` if it is no image, cannot be read, or the calibration has no limits for its
        group; or if pixels are ignored, and were not for the bank or the calibration.

        Parameters
        ----------
        image : ndarray, Tensor, PIL image or path
            See docs/notebook.md.
        ignored : (H, W), optional
            Above 0 where pixels of the image do not count.
        group : str
            The camera or category whose limits of the calibration apply.
        threshold, pixel_threshold : float, optional
            Of the score and of the map, in place of a calibration's.
        """
        limits = self._limits(group, threshold, pixel_threshold, ignored)
        predictor, sha256 = self.predictor, None
        if isinstance(image, str | Path):
            item = Item(str(image), Path(image))
            content = item.content()
            pixels, sha256 = item.pixels(content, self.reading), sha256_of(content)
        else:
            pixels = pixels_of(image, exif=self.reading.exif)
        shape = (pixels.shape[0], pixels.shape[1])
        view = View(shape, self.reading.viewing.fit, _mask(ignored, shape))
        kept = view.kept(predictor.backbone.spec.preprocess.size)
        judged = predictor.judge([view.framed(pixels)], [kept])
        anomaly_map = view.back(predictor.maps(judged, 0, kept))
        result = result_of(
            str(image) if sha256 else "",
            {name: float(value[0]) for name, value in judged.columns.items()},
            anomaly_map,
            limits,
            protocol=self.artefact.record.protocol.name,
            supervision=predictor.supervision,
            goods=predictor.goods,
        )
        seen = {"sha256": sha256, "group": group, "ignored_share": view.ignored_share}
        return Prediction(result.model_copy(update=seen), anomaly_map, pixels, predictor.shown)

    def _limits(
        self, group: str, threshold: float | None, pixel: float | None, ignored: np.ndarray | None
    ) -> Limits:
        given = by_hand(threshold, pixel)
        made = self.calibration if (threshold, pixel) == (None, None) else None
        if ignored is not None and (made or self.bank):
            raise SpgError(
                f"The {'bank' if self.bank else 'calibration'} was made without ignored pixels, "
                "and does not hold for an image with such. Leave out `ignored`, give thresholds, "
                "or load the detector without bank and with calibration=False."
            )
        return made.limits(group) if made else given


def _fitted(
    bank: Path | str | None, made: model.Detector, viewing: Viewing, device: str, *, alone: bool
) -> FittedBank | None:
    """The saved bank that is given; an `SpgError` if it is none, or does not fit."""
    if bank is None and alone:
        raise SpgError("A bank alone is to judge, and none is given. Give bank=FOLDER.")
    if bank is None:
        return None
    given = NormalFolder(Path(bank), BankParams(), alone)
    if fitted := load_bank(given, made, viewing, device=device):
        return fitted
    raise SpgError(f"{bank} is no bank. Make one with `{MAKE} GOOD DETECTOR --out FOLDER`.")


def _deciding(
    given: Path | str | Literal[False] | None, beside: Path, judging: Judging
) -> Calibration | None:
    """The calibration that decides: the one that is given, or lies beside the detector and holds.

    Where neither bank nor program says what white is, its own is taken.
    """
    if given is False or (given is None and not beside.is_file()):
        return None
    file = beside if given is None else Path(given)
    made = Calibration.load(file)
    if judging.white is None:
        judging = judging.model_copy(update={"white": made.judging.white})
    try:
        made.require(judging, date.today(), file)
    except SpgError as error:
        if given is not None:
            raise
        why = f"{error} Until then nothing is decided; calibration=False is silent about it."
        warnings.warn(why, stacklevel=3)
        return None
    return made


def _mask(ignored: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray | None:
    """(H, W) bool of what was given; an `SpgError` if it is of another size than the image."""
    if ignored is not None and np.shape(ignored) != shape:
        raise SpgError(
            f"The ignored pixels are of shape {np.shape(ignored)}, and the image of {shape}. "
            "Expected is a mask (H, W) of the image's size, above 0 where pixels do not count."
        )
    return None if ignored is None else np.asarray(ignored) > 0

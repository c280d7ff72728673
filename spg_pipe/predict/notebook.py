"""A detector in a notebook: an image in, a result that draws itself out (docs/notebook.md)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from spg_pipe.bank.fitted import FittedBank
from spg_pipe.decision.calibration import Calibration, Judging, Limits, by_hand, place_beside
from spg_pipe.detector import model
from spg_pipe.errors import SpgError, counted
from spg_pipe.images.reading import read_image
from spg_pipe.predict.pictures import overlay_picture
from spg_pipe.predict.predictor import Predictor, load_predictor
from spg_pipe.predict.regions import Region
from spg_pipe.predict.result import Result, result_of
from spg_pipe.predict.view import Fit, View
from spg_pipe.recipe.machine import choose_device

Given = np.ndarray | torch.Tensor | Image.Image | Path | str
"""An image as a notebook has it."""
_EXPECTED = (
    "Expected is a path, a PIL image, a NumPy array (H, W) or (H, W, 3), or a torch tensor "
    "(1, H, W) or (3, H, W), of uint8, uint16 or of floats in [0, 1]."
)


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

    @property
    def score(self) -> float:
        """Image score: higher is more anomalous. Not a probability."""
        return self.result.score

    @property
    def parts(self) -> dict[str, float]:
        """What the score is made of."""
        return self.result.parts

    @property
    def decision(self) -> str | None:
        """`normal` or `anomalous`; None without a threshold."""
        return self.result.decision

    @property
    def regions(self) -> tuple[Region, ...]:
        """Connected regions of the map above the pixel threshold, the highest peak first."""
        return self.result.regions

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


@dataclass(frozen=True, eq=False)
class Detector(model.Detector):
    """A detector that predicts: the artefact, and how its backbone is to be loaded.

    It inherits, so that it is the artefact for every function that takes one. The artefact itself
    lies on a floor below and knows neither backbones nor pictures.
    """

    device: str = "cpu"
    weights: Path | None = None
    tiles: tuple[int, ...] = ()
    fit: Fit = "squash"
    bank: Path | None = None
    calibration: Calibration | None = None

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
        calibration: Path | str | None = None,
    ) -> "Detector":
        """Read a detector's folder; its backbone is loaded with the first image, once.

        Parameters
        ----------
        device : str
            `auto` is cuda where there is one.
        weights : Path, optional
            A file of the backbone's weights, if it was made with one.
        tiles : sequence of int
            Sides in pixels at which images are cut into tiles; none: images are taken whole.
        fit : "squash" | "letterbox" | "crop"
            How an image is made square.
        bank : Path, optional
            A few normal images as `spg-pipe fit --normals` fitted them, to compare images with.
        calibration : Path, optional
            Thresholds that `spg-pipe calibrate` made. Default: those beside the detector, if there
            are any and no bank is given.

        Raises
        ------
        SpgError
            If a file is missing or damaged, the device does not exist, or the calibration was made
            for another detector, other tiles, another fit or a bank, or no longer holds.
        """
        made, thresholds, sides = model.Detector.load(Path(path)), None, tuple(tiles)
        beside = place_beside(Path(path))
        if calibration or (bank is None and beside.is_file()):
            file, compared = Path(calibration or beside), "given" if bank else None
            thresholds = Calibration.load(file)
            judging = Judging(detector=made.fingerprint, tiles=sides, fit=fit, bank=compared)
            thresholds.require(judging, date.today(), file)
        where, normals = choose_device(device), Path(bank) if bank else None
        return cls(made.layers, made.record, where, weights, sides, fit, normals, thresholds)

    @cached_property
    def predictor(self) -> Predictor:
        """The detector with its backbone, loaded when it is first asked for.

        An `SpgError` if the backbone cannot be had or is not the detector's.
        """
        if self.record.backbone.family == "arrays":
            raise SpgError(
                "The detector was made from arrays of tokens, so nothing can turn an image into "
                "such tokens. Judge arrays with `store_of_arrays` and `score_store`."
            )
        say = partial(print, file=sys.stderr)
        predictor = load_predictor(self, self.tiles, self.weights, self.device, say)
        bank = FittedBank.load(self.bank, device=self.device) if self.bank else None
        return replace(predictor, bank=bank)

    def predict(
        self,
        image: Given,
        *,
        ignored: np.ndarray | None = None,
        group: str = "",
        threshold: float | None = None,
        pixel_threshold: float | None = None,
    ) -> Prediction:
        """Judge an image.

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

        Raises
        ------
        SpgError
            If it is no image, cannot be read, or the calibration has no limits for its group.
        """
        predictor, protocol = self.predictor, self.record.protocol
        pixels = pixels_of(image, exif=protocol.exif_of_own_images)
        view = View(pixels.shape[:2], self.fit, _mask(ignored, pixels.shape[:2]))
        kept = view.kept(predictor.backbone.spec.preprocess.size)
        judged = predictor.judge([view.framed(pixels)], [kept])
        found = view.back(predictor.maps(judged, 0, kept))
        result = result_of(
            str(image) if isinstance(image, str | Path) else "",
            {name: float(value[0]) for name, value in judged.columns.items()},
            found,
            self._limits(group, threshold, pixel_threshold),
            protocol=protocol.name,
            supervision=predictor.supervision,
        )
        result = result.model_copy(update={"ignored_share": view.ignored_share})
        return Prediction(result, found, pixels, predictor.shown)

    def _limits(self, group: str, threshold: float | None, pixel: float | None) -> Limits:
        given = by_hand(threshold, pixel)
        if self.calibration is None or (threshold, pixel) != (None, None):
            return given
        return self.calibration.limits(group)


def _mask(ignored: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """(H, W) bool of what was given; an `SpgError` if it is of another size than the image."""
    if ignored is not None and np.shape(ignored) != shape:
        raise SpgError(
            f"The ignored pixels are of shape {np.shape(ignored)}, and the image of {shape}. "
            "Expected is a mask (H, W) of the image's size, above 0 where pixels do not count."
        )
    return None if ignored is None else np.asarray(ignored) > 0


def pixels_of(image: Given, *, exif: bool) -> np.ndarray:
    """An image as `read_image` gives it: (H, W, 3) uint8 or uint16.

    A PIL image of 8 bits loses its transparency; its EXIF orientation is undone with `exif`. Floats
    become 16 bits. An `SpgError` says what was found and what was expected.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image), exif=exif)
    if isinstance(image, Image.Image):
        return _coloured(_of_pillow(ImageOps.exif_transpose(image) if exif else image))
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or len(image) not in (1, 3):
            raise SpgError(f"The image is a tensor of shape {tuple(image.shape)}. {_EXPECTED}")
        values = image.detach().cpu().permute(1, 2, 0)
        return _coloured((values.float() if values.is_floating_point() else values).numpy())
    if isinstance(image, np.ndarray):
        return _coloured(image)
    raise SpgError(f"The image is a {type(image).__name__}. {_EXPECTED}")


def _of_pillow(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("1", "L", "RGB"):
        return np.asarray(image.convert("L") if image.mode == "1" else image)
    if image.mode in ("LA", "P", "PA", "RGBA"):  # by way of alpha: see `read_image`
        return np.asarray(image.convert("RGBA").convert("RGB"))
    raise SpgError(f"The PIL image has the mode {image.mode}. Convert it to RGB, L or I;16.")


def _coloured(values: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 1) or (H, W, 3) of any type that is allowed → three channels of integers."""
    shape = values.shape
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or 0 in shape:
        raise SpgError(f"The image is an array of shape {shape}. {_EXPECTED}")
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise SpgError(f"The image has floats from {low:g} to {high:g}. {_EXPECTED}")
        values = np.rint(np.multiply(values, 65535, dtype=np.float64)).astype(np.uint16)
    if values.dtype not in (np.uint8, np.uint16):
        raise SpgError(f"The image is an array of {values.dtype}. {_EXPECTED}")
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))

"""How an image is shown to a backbone's square input, and which of its pixels count."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from PIL import Image

from spg_pipe.decision.maps import resize_maps
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import interpolation
from spg_pipe.images.files import IMAGE_EXTENSIONS
from spg_pipe.images.reading import read_mask

Fit = Literal["squash", "letterbox", "crop"]
"""The whole image made square, or padded to a square, or its centre square alone."""
FOR_ALL = "default"
"""In a folder of masks: the mask of images that have no other."""


@dataclass(frozen=True)
class View:
    """One image as a square."""

    shape: tuple[int, int]
    """(H, W) of the image, pixels."""
    fit: Fit = "squash"
    ignored: np.ndarray | None = None
    """(H, W) bool; None: nothing."""
    name: str = "the image"
    """For errors."""

    def framed(self, pixels: np.ndarray) -> np.ndarray:
        """What is resized to the square: (H, W, 3), padded with its own border, or its centre."""
        if self.fit == "letterbox":
            return np.pad(pixels, (*self._margins, (0, 0)), mode="edge")
        (top, bottom), (left, right) = self._box
        return pixels[top:bottom, left:right]

    def kept(self, size: int) -> np.ndarray | None:
        """How much each pixel of the square counts: (S, S) float32 in [0, 1]; None: all of it.

        An `SpgError` if nothing does.
        """
        if self.ignored is None and (self.fit != "letterbox" or len({*self.shape}) == 1):
            return None
        counts = np.ones(self.shape, bool) if self.ignored is None else ~self.ignored
        (top, bottom), (left, right) = self._box
        square = np.multiply(counts[top:bottom, left:right], 255, dtype=np.uint8)
        if self.fit == "letterbox":
            square = np.pad(square, self._margins)
        shares = Image.fromarray(square).resize((size, size), Image.Resampling.BOX)
        kept = np.asarray(shares, np.float32) / 255
        if not kept.any():
            raise SpgError(
                f"All of {self.name} is ignored, so there is nothing to judge. Give a mask in "
                "which 0 marks what is to be judged."
            )
        return None if (kept == 1).all() else kept

    def back(self, square: np.ndarray) -> np.ndarray:
        """A finished map of the square, (S, S), as the image's: (H, W) float32, bilinear.

        0 where pixels do not count. A pixel of the square that is ignored gives nothing to its
        neighbours here either.
        """
        kept = self.kept(len(square))
        resized = self._resized(square)
        if kept is not None:
            counts = (kept > 0).astype(np.float32)
            shares = self._resized(counts)
            resized = self._resized(square * counts) / np.maximum(shares, np.float32(1e-30))
        np.clip(resized, 0, 1, out=resized)  # rounding leaves that by 1e-7
        if self.judged is not None:
            resized[~self.judged] = 0
        return resized

    @cached_property
    def judged(self) -> np.ndarray | None:
        """(H, W) bool: which pixels count; None: all."""
        (top, bottom), (left, right) = self._box
        if self.ignored is None and (bottom - top, right - left) == self.shape:
            return None
        judged = np.zeros(self.shape, bool)
        part = (slice(top, bottom), slice(left, right))
        judged[part] = True if self.ignored is None else ~self.ignored[part]
        return judged

    @property
    def ignored_share(self) -> float:
        """Of the image's pixels, those that do not count."""
        return 0.0 if self.judged is None else float(1 - self.judged.mean())

    def _resized(self, square: np.ndarray) -> np.ndarray:
        """(S, S) at the image's size; 0 outside of what was shown."""
        (top, bottom), (left, right) = self._box
        (above, below), (before, after) = self._margins
        if self.fit != "letterbox":
            shown = (bottom - top, right - left)
            part = resize_maps(square[None], shown)[0]
            if shown == self.shape:
                return part
            resized = np.zeros(self.shape, np.float32)
            resized[top:bottom, left:right] = part
            return resized
        # Of a long image without the margins, which could be most of the square.
        size = len(square)
        rows = interpolation(size, above + bottom - top + below)[above : above + bottom - top]
        columns = interpolation(size, before + right - left + after)[before : before + right - left]
        resized = np.zeros(self.shape, np.float32)
        resized[top:bottom, left:right] = rows @ torch.from_numpy(square) @ columns.t()
        return resized

    @property
    def _box(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last row, first and last column that are shown; the last not included."""
        side = min(self.shape) if self.fit == "crop" else max(self.shape)
        rows, columns = (((each - side) // 2 if each > side else 0) for each in self.shape)
        height, width = self.shape
        return (rows, min(rows + side, height)), (columns, min(columns + side, width))

    @property
    def _margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows above and below, columns before and after, that a letterbox pads."""
        if self.fit != "letterbox":
            return (0, 0), (0, 0)
        missing = [max(self.shape) - each for each in self.shape]
        above, before = (each // 2 for each in missing)
        return (above, missing[0] - above), (before, missing[1] - before)


@dataclass(frozen=True)
class Viewing:
    """How the images of a run are shown."""

    fit: Fit = "squash"
    ignore: Path | None = None
    """A mask for all images, or a folder of masks: above 0 is ignored."""

    def of(self, name: str, group: str, shape: tuple[int, int], *, exif: bool) -> View:
        """The view of an image.

        Parameters
        ----------
        name : str
            As results show it: `cam1/a/b.png`.
        group : str
            Its camera or category: the mask of this name serves where none is nearer.
        shape : (H, W)
        exif : bool
            Masks are turned as their own EXIF orientation says.

        Raises
        ------
        SpgError
            If it has no mask, or one of another shape, or one that leaves nothing.
        """
        if self.ignore is None:
            return View(shape, self.fit, name=name)
        path = self._mask_of(name, group)
        mask = _mask(path, exif, path.stat().st_mtime_ns)
        return View(shape, self.fit, _at(mask, shape, path, name), name)

    @cached_property
    def masks(self) -> dict[str, Path]:
        """The masks of the folder by their names without an ending; an `SpgError` names twins."""
        if self.ignore is None or self.ignore.is_file():
            return {}
        if not self.ignore.is_dir():
            raise SpgError(f"--ignore {self.ignore} does not exist. Give a mask, or a folder.")
        found: dict[str, Path] = {}
        for path in sorted(self.ignore.rglob("*")):
            if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file():
                name = path.relative_to(self.ignore).with_suffix("").as_posix()
                if name in found:
                    twins = f"{found[name]} and {path}"
                    raise SpgError(f"{twins} are masks of the same images. Remove one.")
                found[name] = path
        return found

    @property
    def digest(self) -> str | None:
        """SHA-256 of all masks and their names; None: nothing is ignored."""
        if self.ignore is None:
            return None
        total = hashlib.sha256()
        for name, path in (self.masks or {"": self.ignore}).items():
            total.update(f"{name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return total.hexdigest()

    def _mask_of(self, name: str, group: str) -> Path:
        if self.ignore is not None and self.ignore.is_file():
            return self.ignore
        place = PurePosixPath(name.lstrip("/")).with_suffix("")
        nearest = [place.as_posix(), *(above.as_posix() for above in place.parents[:-1])]
        tried = list(dict.fromkeys([*nearest, *([group] if group else []), FOR_ALL]))
        for each in tried:
            if each in self.masks:
                return self.masks[each]
        raise SpgError(
            f"There is no mask of {name} in {self.ignore} (looked for {', '.join(tried)} with the "
            f"ending of an image). Add one of them; a black one ignores nothing."
        )


@lru_cache(maxsize=16)
def _mask(path: Path, exif: bool, version: int) -> np.ndarray:
    """(H, W) bool of a mask's file; `version` is its time, by which a changed one is read again."""
    return read_mask(path, exif=exif) > 0


def _at(mask: np.ndarray, shape: tuple[int, int], path: Path, name: str) -> np.ndarray:
    """A mask at an image's size: as it is, or to the nearest pixel if only the scale differs."""
    (height, width), (rows, columns) = shape, mask.shape
    if mask.shape == shape:
        return mask
    if abs(columns - width * rows / height) > 1 and abs(rows - height * columns / width) > 1:
        raise SpgError(
            f"The mask {path} has {columns}×{rows} pixels and {name} has {width}×{height}: another "
            "shape. Draw the mask on an image of this camera."
        )
    down = (np.arange(height) * 2 + 1) * rows // (2 * height)
    right = (np.arange(width) * 2 + 1) * columns // (2 * width)
    return mask[down[:, None], right]

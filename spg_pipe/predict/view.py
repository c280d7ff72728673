"""How an image is shown to a backbone's square input, and which of its pixels count."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image

from spg_pipe.decision.maps import resize_maps
from spg_pipe.errors import SpgError
from spg_pipe.images.files import IMAGE_EXTENSIONS
from spg_pipe.images.reading import read_mask

Fit = Literal["squash", "letterbox", "crop"]
"""The whole image made square, or padded to a square, or its centre square alone."""
Area = tuple[slice, slice]
_LARGEST_SQUARE = 2**27
"""Pixels of a letterbox that are far more than its image's: 400 MB, and 540 MB of its map."""
FOR_ALL = "default"
"""In a folder of masks: the mask of images that have no other."""


@dataclass(frozen=True)
class View:
    """One image as a square; an `SpgError` if that takes far more memory than the image."""

    shape: tuple[int, int]
    """(H, W) of the image, pixels."""
    fit: Fit = "squash"
    ignored: np.ndarray | None = None
    """(H, W) bool; None: nothing."""
    name: str = "the image"
    """For errors."""
    blank: bool = False
    """The backbone does not see what is ignored either, but the mean colour of the rest."""

    def __post_init__(self) -> None:
        height, width = self.shape
        side = max(height, width)
        if self.fit == "letterbox" and side**2 > max(2 * height * width, _LARGEST_SQUARE):
            raise SpgError(
                f"Letterboxed, {self.name} of {width}×{height} pixels would be a square of "
                f"{side**2 / 1e6:.0f} million, of which it fills {min(self.shape) / side:.0%}. Cut "
                "it into pieces, or show it squashed or its centre (--crop)."
            )

    def framed(self, pixels: np.ndarray) -> np.ndarray:
        """What is resized to the square: (H, W, 3), padded with its mirror image, or its centre."""
        if self.blank and self.ignored is not None and not self.ignored.all():
            mean = pixels[~self.ignored].mean(axis=0).round()
            pixels = np.where(self.ignored[:, :, None], mean.astype(pixels.dtype), pixels)
        frame, shown, within = self._places
        margins = [(at.start, side - at.stop) for side, at in zip(frame, within, strict=True)]
        part = pixels[shown]
        return np.pad(part, [*margins, (0, 0)], "symmetric") if any(map(any, margins)) else part

    def kept(self, size: int) -> np.ndarray | None:
        """How much each pixel of the square counts: (S, S) float32 in [0, 1]; None: all of it.

        An `SpgError` if nothing does.
        """
        frame, shown, within = self._places
        square = np.zeros(frame, np.uint8)
        square[within] = 255 if self.ignored is None else np.where(self.ignored[shown], 0, 255)
        if square.all():
            return None
        shares = Image.fromarray(square).resize((size, size), Image.Resampling.BOX)
        kept = np.asarray(shares, np.float32) / 255
        if not kept.any():
            raise SpgError(
                f"All of {self.name} is ignored, so there is nothing to judge. Give a mask in "
                "which 0 marks what is to be judged."
            )
        return kept

    def back(self, square: np.ndarray) -> np.ndarray:
        """A finished map of the square, (S, S), as the image's: (H, W) float32, bilinear.

        0 where pixels do not count. A pixel of the square that is ignored gives nothing to its
        neighbours here either.
        """
        if (kept := self.kept(len(square))) is None:
            resized = self._resized(square)
        else:
            counts = (kept > 0).astype(np.float32)
            resized, shares = self._resized(square * counts), self._resized(counts)
            resized /= np.maximum(shares, 1e-30, out=shares)
        np.clip(resized, 0, 1, out=resized)  # rounding leaves that by 1e-7
        if self.judged is not None:
            resized[~self.judged] = 0
        return resized

    @cached_property
    def judged(self) -> np.ndarray | None:
        """(H, W) bool: which pixels count; None: all."""
        if self.ignored is None and self.fit != "crop":
            return None
        judged, shown = np.zeros(self.shape, bool), self._places[1]
        judged[shown] = True if self.ignored is None else ~self.ignored[shown]
        return judged

    @property
    def ignored_share(self) -> float:
        """Of the image's pixels, those that do not count."""
        return 0.0 if self.judged is None else float(1 - self.judged.mean())

    def _resized(self, square: np.ndarray) -> np.ndarray:
        """(S, S) at the image's size; 0 outside of what was shown."""
        frame, shown, within = self._places
        whole = resize_maps(square[None], frame)[0]
        if frame == self.shape:
            return whole
        resized = np.zeros(self.shape, np.float32)
        resized[shown] = whole[within]
        return resized

    @cached_property
    def _places(self) -> tuple[tuple[int, int], Area, Area]:
        """(H, W) of what is resized to the square; what of the image it shows, and where."""
        side = min(self.shape) if self.fit == "crop" else max(self.shape)
        frame = self.shape if self.fit == "squash" else (side, side)

        def centred(own: tuple[int, int], other: tuple[int, int]) -> Area:
            starts = [max(0, (a - b) // 2) for a, b in zip(own, other, strict=True)]
            sides = [min(a, b) for a, b in zip(own, other, strict=True)]
            return slice(starts[0], starts[0] + sides[0]), slice(starts[1], starts[1] + sides[1])

        return frame, centred(self.shape, frame), centred(frame, self.shape)


@dataclass(frozen=True)
class Viewing:
    """How the images of a run are shown."""

    fit: Fit = "squash"
    ignore: Path | None = None
    """A mask for all images, or a folder of masks: above 0 is ignored."""
    blank: bool = False
    """See `View.blank`."""

    def of(self, name: str, group: str, shape: tuple[int, int], *, exif: bool) -> View:
        """The view of an image.

        An `SpgError` if it has no mask, or one of another shape, or one that leaves nothing.

        Parameters
        ----------
        name : str
            As results show it: `cam1/a/b.png`.
        group : str
            Its camera or category: the mask of this name serves where none is nearer.
        shape : (H, W)
        exif : bool
            Masks are turned as their own EXIF orientation says.
        """
        if self.ignore is None:
            return View(shape, self.fit, name=name)
        path = self._mask_of(name, group)
        mask = _mask(path, exif, path.stat().st_mtime_ns)
        return View(shape, self.fit, _at(mask, shape, path, name), name, self.blank)

    @cached_property
    def masks(self) -> dict[str, Path]:
        """The masks of the folder by their names without an ending.

        An `SpgError` if there is none, or names twins.
        """
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
        if not found:
            raise SpgError(
                f"--ignore {self.ignore} holds no mask. Expected are pictures named as images, "
                f"cameras or {FOR_ALL}: every value above 0 is ignored. Add one, or leave it out."
            )
        return found

    def is_mask(self, path: Path) -> bool:
        """Whether a file is one of the masks, and so no image to be judged."""
        return self.ignore is not None and path.resolve().is_relative_to(self.ignore.resolve())

    @property
    def digest(self) -> str | None:
        """SHA-256 of all masks, their names and whether the backbone sees what is ignored; None:
        nothing is ignored."""
        if self.ignore is None:
            return None
        total = hashlib.sha256(b"blank" if self.blank else b"")
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

"""Which images are to be judged: one, or those of a folder and the folders below it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from spg_pipe.datasets.masks import mask_notes, sort_masks
from spg_pipe.datasets.walk import EXPLAINED, EXPLANATIONS, walk
from spg_pipe.errors import SpgError, counted
from spg_pipe.images.files import IMAGE_EXTENSIONS, utf8_name
from spg_pipe.predict.files import (
    PREDICTIONS,
    Output,
    check_out,
    is_own_file,
    picture_paths,
)


@dataclass(frozen=True)
class Images:
    """The images to be judged."""

    root: Path
    """The folder that their names are relative to."""
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """What was left out, and what could be masks."""

    def name(self, path: Path) -> str:
        """Of an image, as results show it; an `SpgError` if it is not UTF-8."""
        return utf8_name(path.relative_to(self.root).as_posix())

    @cached_property
    def overlays(self) -> list[Path]:
        """Files of the images' heat maps, relative to the output folder."""
        return picture_paths([path.relative_to(self.root) for path in self.paths])

    @cached_property
    def explained(self) -> list[Path]:
        """Files of the pictures that say why, relative to the output folder."""
        names = [path.relative_to(self.root) for path in self.paths]
        return picture_paths(names, EXPLAINED, ".jpg")

    def files(self, output: Output) -> list[Path]:
        """All that a command may write besides its main file."""
        if output == PREDICTIONS:
            return [*self.overlays, *self.explained, Path(EXPLANATIONS)]
        return self.explained


def read_images(source: Path, out: Path, output: Output = PREDICTIONS) -> Images:
    """An image, or all images below a folder, sorted.

    Masks are left out, and the pictures of earlier runs, finished or not.

    An `SpgError` if there is none, one's name is not UTF-8, `out` is the folder that holds them, or
    a result in `out` would replace what is not one. An OSError if a folder cannot be read or
    written.
    """
    if source.is_file():
        root, paths, notes = source.parent, [source], list[str]()
    elif source.is_dir():
        root = source
        if source.resolve().is_relative_to(out.resolve()):
            raise SpgError(f"--out {out} holds the images themselves. Choose a folder of its own.")
        walked = walk(source)
        sorting = sort_masks(source, walked.images)
        left_out = mask_notes(source, sorting.masks, sorting.masks, "left out, ")
        paths, notes = sorting.images, left_out + sorting.doubts + walked.notes(source)
    else:
        raise SpgError(f"{source} does not exist. Give an image or a folder of images.")
    earlier = {path for path in paths if is_own_file(path, out)}
    images = Images(root, tuple(path for path in paths if path not in earlier), tuple(notes))
    if not images.paths:
        own = [f"{counted(len(earlier), 'picture')} of an earlier run in {out}"] if earlier else []
        raise SpgError(
            f"{source} has no images (looked for {' '.join(sorted(IMAGE_EXTENSIONS))})"
            f"{'; '.join(['', *notes, *own])}. Give your own images, the very folder that was "
            "left out, or another --out."
        )
    for path in images.paths:
        images.name(path)
    check_out(out, images.files(output), output)
    return images

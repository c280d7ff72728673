"""Which images are to be judged: one, or those of a folder and the folders below it."""

from dataclasses import dataclass
from pathlib import Path

from spg_pipe.datasets.masks import sort_masks, told
from spg_pipe.datasets.walk import IMAGE_EXTENSIONS, OVERLAYS, walk
from spg_pipe.errors import SpgError
from spg_pipe.predict.files import check_out, is_own_file


@dataclass(frozen=True)
class Images:
    """The images to be judged."""

    root: Path
    """The folder that their names are relative to."""
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """What was left out, and what could be masks."""

    def name(self, path: Path) -> str:
        """Of an image, as results show it."""
        return path.relative_to(self.root).as_posix()

    @property
    def overlays(self) -> list[Path]:
        """Files of the images' heat maps, relative to the output folder."""
        return [Path(OVERLAYS) / f"{self.name(path)}.png" for path in self.paths]


def read_images(source: Path, out: Path) -> Images:
    """An image, or all images below a folder, sorted.

    Masks are left out, and the heat maps of earlier runs, finished or not.

    An `SpgError` if there is none, a folder cannot be read, `out` is the folder that holds them, or
    a result in `out` would replace what is not one.
    """
    if source.is_file():
        root, paths, notes = source.parent, [source], list[str]()
    elif source.is_dir():
        root = source
        if source.resolve().is_relative_to(out.resolve()):
            raise SpgError(f"--out {out} holds the images themselves. Choose a folder of its own.")
        try:
            walked = walk(source)
        except OSError as error:
            raise SpgError(
                f"{error.filename or source} cannot be read ({error.strerror or error}). Check its "
                f"permissions and whether its disk is there."
            ) from error
        sorting = sort_masks(source, walked.images)
        left_out = told(source, sorting.masks, sorting.masks, " left out")
        paths, notes = sorting.images, left_out + sorting.doubts + walked.notes(source)
    else:
        raise SpgError(f"{source} does not exist. Give an image or a folder of images.")
    earlier = [path for path in paths if is_own_file(path, out)]
    images = Images(root, tuple(path for path in paths if path not in earlier), tuple(notes))
    if not images.paths:
        raise SpgError(
            f"{source} has no images (looked for {' '.join(sorted(IMAGE_EXTENSIONS))}) but "
            f"{len(earlier)} heat maps of an earlier run in {out / OVERLAYS}. "
            f"{'; '.join(notes)}. Give your own images, a folder of them that was left out, or "
            f"another --out."
        )
    check_out(out, images.overlays)
    return images

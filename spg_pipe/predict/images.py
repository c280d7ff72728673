"""Which images are to be judged: one, or those of a folder and the folders below it."""

from dataclasses import dataclass
from pathlib import Path

from spg_pipe.datasets.images import IMAGE_EXTENSIONS, is_image
from spg_pipe.datasets.layouts.folder import MASK_FOLDERS
from spg_pipe.errors import SpgError
from spg_pipe.predict.files import OVERLAYS, is_own_folder


@dataclass(frozen=True)
class Images:
    """The images to be judged."""

    root: Path
    """The folder that their names are relative to."""
    paths: tuple[Path, ...]
    masks: int = 0
    """Images in folders of masks, left out."""

    def name(self, path: Path) -> str:
        """Of an image, as results show it."""
        return path.relative_to(self.root).as_posix()

    def overlay(self, path: Path) -> Path:
        """File of an image's heat map, relative to the output folder."""
        return Path(OVERLAYS) / f"{self.name(path)}.png"


def read_images(source: Path, out: Path) -> Images:
    """An image, or all images below a folder, sorted.

    Images in folders of masks are left out, and the heat maps of an earlier run into `out`,
    finished or not.

    Raises
    ------
    SpgError
        If there is none, or `out` is the folder that holds them.
    """
    if source.is_file():
        return _without_overlays(Images(source.parent, (source,)), source, out)
    if not source.is_dir():
        raise SpgError(f"{source} does not exist. Give an image or a folder of images.")
    every = [path for path in source.rglob("*") if is_image(path) and path.is_file()]
    paths = sorted(path for path in every if not _is_mask(path.relative_to(source)))
    masks = len(every) - len(paths)
    if not paths:
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        left_out = f"; {masks} lie in folders of masks" if masks else ""
        raise SpgError(f"{source} has no images (looked for {known}{left_out}).")
    if source.resolve().is_relative_to(out.resolve()):
        raise SpgError(f"--out {out} holds the images themselves. Choose a folder of its own.")
    return _without_overlays(Images(source, tuple(paths), masks), source, out)


def _without_overlays(images: Images, source: Path, out: Path) -> Images:
    paths = tuple(path for path in images.paths if not _is_overlay(path, out))
    if not paths:
        raise SpgError(
            f"{source} has no images but the heat maps of an earlier run in {out / OVERLAYS}. "
            "Give your own images, or another --out."
        )
    return Images(images.root, paths, images.masks)


def _is_mask(relative: Path) -> bool:
    return not {*MASK_FOLDERS}.isdisjoint(relative.parts[:-1])


def _is_overlay(path: Path, out: Path) -> bool:
    file, folder = path.resolve(), out.resolve()
    below = file.relative_to(folder).parts if file.is_relative_to(folder) else ()
    return len(below) > 1 and is_own_folder(below[0])

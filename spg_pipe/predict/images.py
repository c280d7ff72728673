"""Which images are to be judged: one, or those of a folder and the folders below it."""

from dataclasses import dataclass, replace
from pathlib import Path

from spg_pipe.datasets.layouts.folder import MASK_FOLDERS
from spg_pipe.datasets.walk import IMAGE_EXTENSIONS, is_image
from spg_pipe.errors import SpgError
from spg_pipe.predict.files import OVERLAYS, is_own_file


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

    @property
    def overlays(self) -> list[Path]:
        """Files of the images' heat maps, relative to the output folder."""
        return [Path(OVERLAYS) / f"{self.name(path)}.png" for path in self.paths]


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
        images = Images(source.parent, (source,))
    elif source.is_dir():
        images = _below(source)
        if source.resolve().is_relative_to(out.resolve()):
            raise SpgError(f"--out {out} holds the images themselves. Choose a folder of its own.")
    else:
        raise SpgError(f"{source} does not exist. Give an image or a folder of images.")
    paths = tuple(path for path in images.paths if not is_own_file(path, out))
    if not paths:
        raise SpgError(
            f"{source} has no images but the heat maps of an earlier run in {out / OVERLAYS}. "
            "Give your own images, or another --out."
        )
    return replace(images, paths=paths)


def _below(source: Path) -> Images:
    every = [path for path in source.rglob("*") if is_image(path) and path.is_file()]
    masks = {path for path in every if {*MASK_FOLDERS} & {*path.relative_to(source).parts[:-1]}}
    if len(every) == len(masks):
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        left_out = f"; {len(masks)} lie in folders of masks" if masks else ""
        raise SpgError(f"{source} has no images (looked for {known}{left_out}).")
    return Images(source, tuple(sorted({*every} - masks)), len(masks))

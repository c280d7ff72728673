"""Which images are to be judged: one, or those of a folder and the folders below it."""

from dataclasses import dataclass
from pathlib import Path

from spg_pipe.datasets.layouts.folder import MASK_FOLDERS
from spg_pipe.datasets.walk import IMAGE_EXTENSIONS, is_image, utf8_name
from spg_pipe.errors import SpgError
from spg_pipe.predict.files import OVERLAYS, check_out, is_own_file, overlay_paths


@dataclass(frozen=True)
class Images:
    """The images to be judged."""

    root: Path
    """The folder that their names are relative to."""
    paths: tuple[Path, ...]
    masks: int = 0
    """Images in folders of masks, left out."""

    def name(self, path: Path) -> str:
        """Of an image, as results show it; an `SpgError` if it is not UTF-8."""
        return utf8_name(path.relative_to(self.root).as_posix())

    @property
    def overlays(self) -> list[Path]:
        """Files of the images' heat maps, relative to the output folder."""
        return overlay_paths([path.relative_to(self.root) for path in self.paths])


def read_images(source: Path, out: Path) -> Images:
    """An image, or all images below a folder, sorted.

    Images in folders of masks are left out, and the heat maps of an earlier run into `out`,
    finished or not.

    An `SpgError` if there is none, one's name is not UTF-8, `out` is the folder that holds them, or
    a result in `out` would replace what is not one. An OSError if `out` cannot be written.
    """
    if source.is_file():
        root, paths, masks = source.parent, {source}, set[Path]()
    elif source.is_dir():
        root, paths = source, {p for p in source.rglob("*") if is_image(p) and p.is_file()}
        masks = {path for path in paths if {*MASK_FOLDERS} & {*path.relative_to(source).parts[:-1]}}
        if source.resolve().is_relative_to(out.resolve()):
            raise SpgError(f"--out {out} holds the images themselves. Choose a folder of its own.")
    else:
        raise SpgError(f"{source} does not exist. Give an image or a folder of images.")
    earlier = {path for path in paths if is_own_file(path, out)}
    images = Images(root, tuple(sorted(paths - masks - earlier)), len(masks))
    if not images.paths:
        raise SpgError(
            f"{source} has no images (looked for {' '.join(sorted(IMAGE_EXTENSIONS))}) but "
            f"{len(masks)} in folders of masks and {len(earlier)} heat maps of an earlier run in "
            f"{out / OVERLAYS}. Give your own images, or another --out."
        )
    for path in images.paths:
        images.name(path)
    check_out(out, images.overlays)
    return images

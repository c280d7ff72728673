"""The known layouts."""

from spg_pipe.datasets.layouts.coco import COCO
from spg_pipe.datasets.layouts.csv import CSV
from spg_pipe.datasets.layouts.folder import FOLDER
from spg_pipe.datasets.layouts.mvtec import MVTEC
from spg_pipe.datasets.layouts.synthetic import SYNTHETIC
from spg_pipe.datasets.layouts.visa import VISA

LAYOUTS = {layout.name: layout for layout in (MVTEC, VISA, FOLDER, CSV, COCO, SYNTHETIC)}


def honours_exif(layout: str, exif_of_own_images: bool) -> bool:
    """Whether images of a layout are turned as their EXIF says, by the protocol's setting."""
    return LAYOUTS[layout].own_images and exif_of_own_images

"""What the demo sets hold: layout, categories, photographs and kinds of defects."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Photograph:
    """A photograph in scikit-image's wheel and the part of it that a category uses."""

    file: str
    """Name in skimage/data."""
    sha256: str
    """Of the file, the first 16 hex digits: another file would make another demo set."""
    licence: str
    """As scikit-image's documentation states it."""
    box: tuple[int, int, int, int] | None = None
    """Left, top, right, bottom in pixels; None: all of it."""
    scale: float = 1.0
    """Enlargement of the part before images are cut from it."""


@dataclass(frozen=True)
class DemoSet:
    """A demo dataset that `write_demo` can generate."""

    name: str
    layout: Literal["mvtec", "visa"]
    categories: dict[str, Photograph]
    """Category → the photograph that its images are cut from."""
    painters: tuple[str, ...]
    """Kinds of defects; a kind's number from 1 is its value in a VisA mask."""
    image_size: int = 288
    """Height and width of every image, pixels."""
    train: int = 4
    """Normal training images a category."""
    normal: int = 12
    """Normal test images a category."""
    anomalous: int = 12
    """Anomalous test images a category: the painters take turns."""

    @property
    def licence(self) -> str:
        """One line for manifests and detectors."""
        parts = "; ".join(f"{p.file}: {p.licence}" for p in self.categories.values())
        return f"{self.name}: generated from photographs that scikit-image ships ({parts})"


_CC0 = "CC0 1.0"

_MVTEC = DemoSet(
    name="demo-mvtec",
    layout="mvtec",
    categories={
        "brick": Photograph("brick.png", "7966caf324f6ba84", _CC0),
        "galaxies": Photograph("hubble_deep_field.jpg", "3a19c5dd8a927a93", "public domain (NASA)"),
        "gravel": Photograph("gravel.png", "c48615b451bf1e60", _CC0),
        "retina": Photograph(
            "retina.jpg", "38a07f36f27f095e", _CC0, box=(255, 255, 1155, 1155), scale=0.6
        ),
    },
    painters=("lint", "scratches", "spatter"),
)

_VISA = DemoSet(
    name="demo-visa",
    layout="visa",
    categories={
        "coins": Photograph(
            "coins.png",
            "f8d773fc9cfa6f4d",
            "no known copyright restrictions (Brooklyn Museum)",
            scale=1.2,
        ),
        "grass": Photograph("grass.png", "b6b6022426b38936", _CC0),
        "tissue": Photograph(
            "ihc.png", "f8dd1aa387ddd1f4", "no known copyright restrictions (CMMI)"
        ),
        "wood": Photograph(
            "coffee.png", "cc02f8ca188b167c", _CC0, box=(470, 0, 600, 165), scale=2.6
        ),
    },
    painters=("blisters", "crackle", "tidemark"),
)

DEMO_SETS: dict[str, DemoSet] = {demo.name: demo for demo in (_MVTEC, _VISA)}

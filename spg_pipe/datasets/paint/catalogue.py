"""What the demo sets hold: layout, categories, photographs and kinds of defects."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Photograph:
    """A photograph in scikit-image's wheel and the part of it that a category uses."""

    file: str
    """Name in skimage/data."""
    sha256: str
    """Of the file, hex: another file would make another demo set."""
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
        "brick": Photograph(
            "brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf", _CC0
        ),
        "galaxies": Photograph(
            "hubble_deep_field.jpg",
            "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
            "public domain (NASA)",
        ),
        "gravel": Photograph(
            "gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12", _CC0
        ),
        "retina": Photograph(
            "retina.jpg",
            "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
            _CC0,
            box=(255, 255, 1155, 1155),
            scale=0.6,
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
            "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
            "no known copyright restrictions (Brooklyn Museum)",
            scale=1.2,
        ),
        "grass": Photograph(
            "grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89", _CC0
        ),
        "tissue": Photograph(
            "ihc.png",
            "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
            "no known copyright restrictions (CMMI)",
        ),
        "wood": Photograph(
            "coffee.png",
            "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
            _CC0,
            box=(470, 0, 600, 165),
            scale=2.6,
        ),
    },
    painters=("blisters", "crackle", "tidemark"),
)

DEMO_SETS: dict[str, DemoSet] = {demo.name: demo for demo in (_MVTEC, _VISA)}

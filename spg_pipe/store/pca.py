"""Tokens as colours: the first three principal components of some images' tokens, as a PNG."""

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.datasets.manifest import MaskState
from spg_pipe.errors import SpgError, printable
from spg_pipe.store.reader import FeatureStore

DEFAULT_IMAGES = "6"
MOST_IMAGES = 64
_PERCENTILES = (1, 99)
"""Of each component: a few extreme tokens must not make all others grey."""
_NO_VARIANCE = 1e-9
"""Share of the tokens' variance below which a component is rounding."""
_GREY = 0.5
_CELL = 2.2
"""Inches: side of a picture with its caption."""
_CAPTION = 36
"""Letters that fit above a picture."""


def draw_pca(
    store: FeatureStore, file: Path, images: str | None = None, layer: str | None = None
) -> dict[str, Any]:
    """Write a picture: a row an image, a column a layer, the outline of a given mask on top.

    Parameters
    ----------
    file : Path
        A PNG; an earlier one is replaced, nothing else is written.
    images : str, optional
        Rows of the store with commas between them, or how many, evenly spread (6).
    layer : str, optional
        This layer alone.

    Returns
    -------
    dict
        `file`, `images` (rows) and `explained` (layer → share of the variance in the three
        components); plain values.

    Raises
    ------
    SpgError
        If the file cannot be meant, a row or the layer is not in the store, or the tokens are
        not finite.
    """
    if file.suffix.lower() != ".png" or file.is_dir() or not file.parent.is_dir():
        raise SpgError(
            f"--pca {file}: expected the name of a picture that ends in .png, in a folder that is "
            "there."
        )
    if store.files.local and file.resolve().is_relative_to(store.files.local.resolve()):
        raise SpgError(f"--pca {file} lies inside the store. Name a file outside it.")
    rows = chosen_rows(images if images is not None else DEFAULT_IMAGES, len(store))
    if layer is not None and layer not in store.layers:
        raise SpgError(
            f"{store.path} has no layer {layer!r}; it has {', '.join(store.layers)}. Name one of "
            "them, or leave --layer out for all."
        )
    layers = store.layers if layer is None else (layer,)
    colours = {name: token_colours(store, name, rows) for name in layers}
    shares = {name: share for name, (_, share) in colours.items()}
    pixels = {
        f"layer {name}, {rgb.shape[1]}×{rgb.shape[2]}, {share:.0%} of variance": rgb
        for name, (rgb, share) in colours.items()
    }
    write_bytes(file, _png(store, rows, pixels))
    return {"file": str(file), "images": rows.tolist(), "explained": shares}


def chosen_rows(text: str, images: int) -> np.ndarray:
    """The rows that a person asks for: `0,5,7`, or a count of evenly spread ones.

    Raises SpgError if it is neither, or a row is not one of the store's `images`.
    """
    parts = text.removesuffix(",").split(",")  # `5,` is the image 5 alone
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if len(numbers) == len(parts) <= MOST_IMAGES:
        if "," in text and max(numbers) < images:
            return np.array(numbers)
        if "," not in text and 1 <= numbers[0] <= MOST_IMAGES:
            return np.linspace(0, images - 1, min(numbers[0], images)).round().astype(int)
    raise SpgError(
        f"--images {text}: expected up to {MOST_IMAGES} row numbers with commas between them, for "
        f"instance 0,5, or how many images. The store has the rows 0 to {images - 1}."
    )


def token_colours(store: FeatureStore, layer: str, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Colours of the patch tokens of some images: their common principal components.

    Red, green and blue are the components in falling order, each scaled from its 1st to its 99th
    percentile over all tokens of `rows`. A component's sign is such that its largest loading is
    positive. All these tokens are in memory at once, in float64.

    Parameters
    ----------
    rows : (n,) int

    Returns
    -------
    (n, h, w, 3) float32 in [0, 1]
        A component without variance is 0.5 everywhere.
    float
        Share of the tokens' variance in the three components.

    Raises
    ------
    SpgError
        If the tokens are not finite.
    """
    shape = store.spec.layers[layer]
    tokens = store.tokens(layer, rows).astype(np.float64).reshape(-1, shape.dim)
    if not np.isfinite(tokens).all():
        raise SpgError(
            f"{store.path}: layer {layer} has tokens that are not finite; `spg-pipe verify` says "
            "where the store is damaged."
        )
    # Differences from one of the tokens: a large common part costs no digits, and tokens that are
    # all alike give exactly 0.
    tokens -= tokens[0].copy()
    pca = PCA(min(3, *tokens.shape), svd_solver="covariance_eigh")
    with np.errstate(invalid="ignore", divide="ignore"):  # shares of no variance at all
        values = pca.fit_transform(tokens)
    real = pca.explained_variance_ratio_ > _NO_VARIANCE
    rgb = np.full((len(tokens), 3), _GREY, np.float32)
    for component in np.flatnonzero(real):
        rgb[:, component] = _scaled(values[:, component])
    share = float(pca.explained_variance_ratio_[real].sum())
    return rgb.reshape(len(rows), *shape.grid, 3), share


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, _PERCENTILES)
    if low == high:  # nearly all tokens are alike: show the few that are not
        low, high = values.min(), values.max()
    return np.clip((values - low) / (high - low), 0, 1)


def _png(store: FeatureStore, rows: np.ndarray, pixels: dict[str, np.ndarray]) -> bytes:
    """The picture of `pixels`: heading of a column → (n, h, w, 3) in [0, 1]."""
    masks, paths = store.group["mask"], store.array("path")
    given = store.array("mask_state") == MaskState.GIVEN
    stream = io.BytesIO()
    style: dict[Any, Any] = {"text.parse_math": False, "font.size": 7, "axes.titlesize": 7}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        size = (_CELL * len(pixels), _CELL * len(rows))
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        cells = figure.subplots(len(rows), len(pixels), squeeze=False)
        for number, row in enumerate(rows.tolist()):
            # One mask at a time: `store.masks` would unpack those of the whole store.
            with store.reading("mask"):
                mask = masks[row] if given[row] else np.zeros((store.image_size,) * 2)
            caption = printable(f"{row}: {paths[row]}")
            if len(caption) > _CAPTION:
                caption = f"…{caption[1 - _CAPTION :]}"
            for axes, (heading, images) in zip(cells[number], pixels.items(), strict=True):
                title = caption if number else f"{heading}\n{caption}"
                _paint(axes, images[number], mask, title)
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _paint(axes: "Axes", image: np.ndarray, mask: np.ndarray, caption: str) -> None:
    size = len(mask)
    axes.imshow(image, extent=(0, size, size, 0), interpolation="nearest")
    axes.set(title=caption, xticks=[], yticks=[])
    if mask.any():
        centres = np.arange(size + 2) - 0.5
        for colour, line in (("black", 1.6), ("white", 0.7)):
            axes.contour(centres, centres, np.pad(mask, 1), [0.5], colors=colour, linewidths=line)
        axes.set(xlim=(0, size), ylim=(size, 0))

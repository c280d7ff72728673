"""Tokens as colours: the first three principal components of some images' tokens, as a PNG."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.decision.heat_maps import outline
from spg_pipe.errors import SpgError, printable
from spg_pipe.recipe.data import whole_number
from spg_pipe.store.reader import FeatureStore

MOST_IMAGES = 64
_PERCENTILES = (1, 99)
"""Of each component: a few extreme tokens must not make all others grey."""
_NO_VARIANCE = 1e-9
"""Share of the tokens' variance below which a component is rounding."""
_SIDE, _LINE, _GAP = 320, 18, 8
"""Pixels: of a picture, of a line of text above it, around both."""
_CAPTION = 44
"""Letters that fit above a picture."""


def draw_pca(
    store: FeatureStore, file: Path, images: str | None = None, layer: str | None = None
) -> dict[str, Any]:
    """Write a picture: a row an image, a column a layer, the outline of a given mask on top.

    An `SpgError` if the file cannot be meant, a row or the layer is not in the store, or the tokens
    are not finite.

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
    """
    folder = store.files.local
    if file.suffix.lower() != ".png" or file.is_dir() or not file.parent.is_dir():
        raise SpgError(
            f"--pca {file}: expected a name that ends in .png, in a folder that is there."
        )
    if folder and file.resolve().is_relative_to(folder.resolve()):
        raise SpgError(f"--pca {file} lies inside the store. Name a file outside it.")
    rows = chosen_rows("6" if images is None else images, len(store))
    if layer not in (None, *store.layers):
        known = ", ".join(store.layers)
        raise SpgError(f"{store.path} has no layer {layer!r}; it has {known}. Name one, or none.")
    colours = {
        name: token_colours(store, name, rows) for name in store.layers if layer in (None, name)
    }
    page = _page(store, rows, colours)
    page.save(data := io.BytesIO(), format="PNG")
    write_bytes(file, data.getvalue())
    shares = {name: share for name, (_, share) in colours.items()}
    return {"file": str(file), "images": rows.tolist(), "explained": shares}


def chosen_rows(text: str, images: int) -> np.ndarray:
    """The rows that a person asks for: `0,5,7`, or a count of evenly spread ones.

    Raises SpgError if it is neither, or a row is not one of the store's `images`.
    """
    parts = text.removesuffix(",").split(",")  # `5,` is the image 5 alone
    numbers = [n for part in parts if (n := whole_number(part.strip())) is not None]
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
    """Colours of the patch tokens of some images (n,): their common principal components.

    Red, green and blue are the components in falling order, each scaled from its 1st to its 99th
    percentile. All these tokens are in memory at once, in float64. An `SpgError` if the tokens are
    not finite.

    Returns
    -------
    (n, h, w, 3) float64 in [0, 1]
        A component without variance is 0.5 everywhere.
    float
        Share of the tokens' variance in the three components.
    """
    from sklearn.decomposition import PCA

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
    rgb = np.full((len(tokens), 3), 0.5)
    for component in np.flatnonzero(real):
        rgb[:, component] = _scaled(values[:, component])
    share = float(pca.explained_variance_ratio_[real].sum())
    return rgb.reshape(len(rows), *shape.grid, 3), share


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, _PERCENTILES)
    if low == high:  # nearly all tokens are alike: show the few that are not
        low, high = values.min(), values.max()
    return np.clip((values - low) / (high - low), 0, 1)


def _page(
    store: FeatureStore, rows: np.ndarray, columns: dict[str, tuple[np.ndarray, float]]
) -> Image.Image:
    """Of each layer the colours (n, h, w, 3) and their share, below a line that says so."""
    across, down = _SIDE + _GAP, _SIDE + _LINE + _GAP
    page = Image.new("RGB", (len(columns) * across + _GAP, len(rows) * down + _LINE), "white")
    letters = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    pen, font = ImageDraw.Draw(page), ImageFont.truetype(letters, 12)
    paths = store.array("path")
    for column, (layer, (rgb, share)) in enumerate(columns.items()):
        left, (h, w) = _GAP + column * across, rgb.shape[1:3]
        heading = f"layer {layer}, {h}×{w}, {share:.0%} of variance"
        pen.text((left, 1), heading, fill="black", font=font)
        for number, row in enumerate(rows.tolist()):
            top, caption = _LINE + number * down, printable(f"{row}: {paths[row]}")
            if len(caption) > _CAPTION:
                caption = f"…{caption[1 - _CAPTION :]}"
            pen.text((left, top + 1), caption, fill="black", font=font)
            picture = Image.fromarray((rgb[number] * 255).astype(np.uint8))
            with store.reading("mask"):  # one: `store.masks` would unpack those of the whole store
                mask = Image.fromarray(np.asarray(store.group["mask"][row]))
            both = (each.resize((_SIDE, _SIDE), 0) for each in (picture, mask))
            colours, inside = map(np.asarray, both)
            page.paste(Image.fromarray(outline(colours, inside)), (left, top + _LINE))
    return page

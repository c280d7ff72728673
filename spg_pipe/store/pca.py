"""Tokens as colours: the first three principal components of some images' tokens, as a PNG."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.datasets.manifest import MaskState
from spg_pipe.errors import SpgError
from spg_pipe.store.reader import FeatureStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_IMAGES = "6"
MOST_IMAGES = 64
_PERCENTILES = (1, 99)
"""Of each component: a few extreme tokens must not make all others grey."""
_NO_VARIANCE = 1e-9
"""Share of the largest component's variance below which a component is rounding."""
_GREY = 0.5
_CELL, _GAP, _HEADER, _CAPTION = 2.0, 0.06, 0.3, 0.22
"""Inches: side of a picture, between pictures, heading of a column, caption above a row."""
_DPI = 150
_FONT_POINTS = 7


@dataclass(frozen=True)
class TokenColours:
    """One layer of some images."""

    rgb: np.ndarray
    """(n, h, w, 3) float32 in [0, 1]; a component without variance is 0.5 everywhere."""
    explained: tuple[float, ...]
    """Share of the tokens' variance in each of the three components."""


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
    _check_file(store, file)
    rows = chosen_rows(images if images is not None else DEFAULT_IMAGES, len(store))
    if layer is not None and layer not in store.layers:
        raise SpgError(
            f"{store.path} has no layer {layer!r}; it has {', '.join(store.layers)}. Name one of "
            "them, or leave --layer out for all."
        )
    layers = store.layers if layer is None else (layer,)
    colours = {name: token_colours(store, name, rows) for name in layers}
    write_bytes(file, _png(store, rows, colours))
    return {
        "file": str(file),
        "images": rows.tolist(),
        "explained": {name: sum(one.explained) for name, one in colours.items()},
    }


def _check_file(store: FeatureStore, file: Path) -> None:
    if file.suffix.lower() != ".png" or file.is_dir() or not file.parent.is_dir():
        raise SpgError(
            f"--pca {file}: expected the name of a picture that ends in .png, in a folder that is "
            "there."
        )
    if store.files.local and file.resolve().is_relative_to(store.files.local.resolve()):
        raise SpgError(f"--pca {file} lies inside the store. Name a file outside it.")


def chosen_rows(text: str, images: int) -> np.ndarray:
    """The rows that a person asks for: `0,5,7`, or a count of evenly spread ones.

    Raises SpgError if it is neither, or a row is not one of the store's `images`.
    """
    parts = [part.strip() for part in text.split(",")]
    is_list = len(parts) > 1
    if is_list and not parts[-1]:
        parts.pop()  # `5,` is the image 5 alone
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if len(numbers) == len(parts) <= MOST_IMAGES:
        if is_list and max(numbers) < images:
            return np.array(numbers)
        if not is_list and 1 <= numbers[0] <= MOST_IMAGES:
            return np.linspace(0, images - 1, min(numbers[0], images)).round().astype(int)
    raise SpgError(
        f"--images {text}: expected up to {MOST_IMAGES} row numbers with commas between them, for "
        f"instance 0,5, or how many images. The store has the rows 0 to {images - 1}."
    )


def token_colours(store: FeatureStore, layer: str, rows: np.ndarray) -> TokenColours:
    """Colours of the patch tokens of some images: their common principal components.

    Red, green and blue are the components in falling order, each scaled from its 1st to its 99th
    percentile over all tokens of `rows`. A component's sign is such that its largest loading is
    positive. All these tokens are in memory at once, in float64.

    Parameters
    ----------
    rows : (n,) int

    Raises
    ------
    SpgError
        If the tokens are not finite.
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
    variances = pca.explained_variance_
    real = variances > max(_NO_VARIANCE * variances[0], 0.0)
    rgb = np.full((len(tokens), 3), _GREY, np.float32)
    for component in np.flatnonzero(real):
        rgb[:, component] = _scaled(values[:, component])
    shares = np.zeros(3)
    shares[: len(real)][real] = pca.explained_variance_ratio_[real]
    return TokenColours(rgb.reshape(len(rows), *shape.grid, 3), tuple(shares.tolist()))


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, _PERCENTILES)
    if low == high:  # nearly all tokens are alike: show the few that are not
        low, high = values.min(), values.max()
    return np.clip((values - low) / (high - low), 0, 1)


def _png(store: FeatureStore, rows: np.ndarray, colours: dict[str, TokenColours]) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    width = len(colours) * (_CELL + _GAP) + _GAP
    height = _HEADER + len(rows) * (_CELL + _CAPTION) + _GAP
    stream = io.BytesIO()
    style: dict[Any, Any] = {"text.parse_math": False, "font.size": _FONT_POINTS}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height))
        _paint(figure, store, rows, colours)
        figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def _paint(
    figure: "Figure", store: FeatureStore, rows: np.ndarray, colours: dict[str, TokenColours]
) -> None:
    width, height = figure.get_size_inches()
    size = store.image_size
    masks = store.files.group()["mask"]
    given = store.array("mask_state") == MaskState.GIVEN
    paths = store.array("path")
    letters = int((width - 2 * _GAP) * 72 / (0.62 * _FONT_POINTS))
    for column, (layer, one) in enumerate(colours.items()):
        grid = store.spec.layers[layer].grid
        text = f"layer {layer}, {grid[0]}×{grid[1]}, {sum(one.explained):.0%} of variance"
        left = _GAP + column * (_CELL + _GAP)
        figure.text(left / width, 1 - 0.5 * _HEADER / height, text, va="center")
    for number, row in enumerate(rows.tolist()):
        top = _HEADER + number * (_CELL + _CAPTION)
        caption = _short(f"{row}: {paths[row]}", letters)
        figure.text(_GAP / width, 1 - (top + 0.5 * _CAPTION) / height, caption, va="center")
        # One mask at a time: `store.masks` would unpack those of the whole store.
        mask = np.pad(masks[row], 1) if given[row] else np.zeros(0)
        for column, one in enumerate(colours.values()):
            left = _GAP + column * (_CELL + _GAP)
            bottom = height - top - _CAPTION - _CELL
            axes = figure.add_axes(
                (left / width, bottom / height, _CELL / width, _CELL / height),
                xticks=[],
                yticks=[],
            )
            extent = (0, size, size, 0)
            axes.imshow(one.rgb[number], extent=extent, interpolation="nearest", aspect="auto")
            if mask.any():
                centres = np.arange(size + 2) - 0.5
                for colour, line in (("black", 1.6), ("white", 0.7)):
                    axes.contour(centres, centres, mask, [0.5], colors=colour, linewidths=line)
                axes.set(xlim=(0, size), ylim=(size, 0))


def _short(text: str, letters: int) -> str:
    """A caption that fits: its end is what tells images apart."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= letters else f"…{shown[-letters + 1 :]}"

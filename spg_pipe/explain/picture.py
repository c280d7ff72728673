"""Why, as one picture: photograph, anomaly map, maps of a few atoms, bars of contributions."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spg_pipe.decision import heat_maps
from spg_pipe.decision.maps import resize_maps
from spg_pipe.explain.explanation import Explanation
from spg_pipe.explain.parts import DETECTION, MAP_GUIDES

ATOMS = 4
"""Atoms whose maps a picture shows."""
BARS = 10
"""Atoms among the bars. Those of the whole image are not: what they contribute hardly differs
between images of one product."""
QUALITY = 88
_SIDE = 240
"""Longest side of each of the small pictures, pixels."""
_ROW, _GAP, _CAPTION, _NAME, _BAR, _VALUE = 18, 12, 110, 150, 150, 75
TOWARDS = {True: (200, 40, 30), False: (30, 90, 200)}
"""Colour of what speaks for an anomaly, and of what speaks against it."""
FULL = {True: 0.5, False: 0.05}
"""Part of a map's log odds, or of its probability, that gets the full colour."""
_INK, _PAPER, _FAINT = (26, 26, 26), (255, 255, 255), (205, 205, 205)


def draw(
    photograph: np.ndarray,
    anomaly_map: np.ndarray,
    explanation: Explanation,
    image: int,
    shown: tuple[float, float],
) -> Image.Image:
    """Draw why an image (H, W, 3) uint8 has its score.

    `anomaly_map` (h, w) float32 is finished, of any size; `shown` are its values that get the
    darkest and the brightest colour.
    """
    small = _small(photograph)
    size = (small.shape[0], small.shape[1])
    low, high = shown
    resized = resize_maps(anomaly_map[None].astype(np.float32), size)[0]
    panels = [
        (small, "photograph"),
        (heat_maps.overlay(small, resized, low=low, high=high), "anomaly map"),
    ]
    for row in explanation.most_apart(image)[:ATOMS].tolist():
        layer, atom, _ = explanation.atoms[row]
        part = explanation.atom_map(image, explanation.finest(layer), atom)
        over = atom_overlay(small, part, log_odds=explanation.log_odds)
        panels.append((over, f"{layer}-{atom}: {explanation.excess[image, row]:+.3f}"))
    return _page(panels, _bars(explanation, image))


def atom_overlay(photograph: np.ndarray, part: np.ndarray, *, log_odds: bool) -> np.ndarray:
    """An atom's part of a map over a grey photograph, in two colours: (H, W, 3) uint8.

    Shown is how far each patch lies above (red) or below (blue) the mean of its image. The scale is
    fixed, so that pictures can be compared. `part` (h, w) is `Explanation.atom_map`, `log_odds`
    `Explanation.log_odds`.
    """
    size = (photograph.shape[0], photograph.shape[1])
    above = (part - part.mean())[None].astype(np.float32)
    share = (resize_maps(above, size)[0] / FULL[log_odds])[:, :, None]
    grey = (photograph @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    opacity = np.abs(share).clip(0, 1) * heat_maps.OPACITY
    colours = np.where(share > 0, TOWARDS[True], TOWARDS[False])
    return np.rint(grey * (1 - opacity) + colours * opacity).astype(np.uint8)


def _small(photograph: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(photograph)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(picture)


def _bars(explanation: Explanation, image: int) -> list[tuple[str, float | None]]:
    """What adds up to the score, then atoms; a heading has no value."""
    words = {MAP_GUIDES: "guides, map", DETECTION: "guides, whole image"}
    bars: list[tuple[str, float | None]] = [("score", float(explanation.scores[image]))]
    bars += [("bias", explanation.bias)] if explanation.bias else []
    bars += [
        (words.get(name, name.replace("_", " ")), float(values[image]))
        for name, values in explanation.components.items()
    ]
    rows = explanation.most_apart(image)[:BARS].tolist()
    if rows:
        named = [f"{explanation.atoms[row].layer}-{explanation.atoms[row].atom}" for row in rows]
        bars += [("", None), ("Atoms of the map, above the image's mean", None)]
        bars += zip(named, explanation.excess[image, rows].tolist(), strict=True)
    return bars


def _page(
    panels: Sequence[tuple[np.ndarray, str]], bars: Sequence[tuple[str, float | None]]
) -> Image.Image:
    """Panels with captions in rows of three, bars to their right."""
    font = ImageFont.load_default(size=13)
    height, width = panels[0][0].shape[0], max(panels[0][0].shape[1], _CAPTION)
    down = -(-len(panels) // 3) * (height + _ROW + _GAP)
    high = max(down, len(bars) * _ROW) + 2 * _GAP
    left = 3 * (width + _GAP) + _GAP
    page = Image.new("RGB", (left + _NAME + _BAR + _VALUE, high), _PAPER)
    pen = ImageDraw.Draw(page)
    for number, (pixels, caption) in enumerate(panels):
        x = _GAP + number % 3 * (width + _GAP)
        y = _GAP + number // 3 * (height + _ROW + _GAP)
        page.paste(Image.fromarray(pixels), (x, y))
        pen.text((x, y + height + 2), caption, fill=_INK, font=font)
    _draw_bars(pen, left, bars, font)
    return page


def _draw_bars(
    pen: ImageDraw.ImageDraw,
    left: int,
    bars: Sequence[tuple[str, float | None]],
    font: "ImageFont.FreeTypeFont | ImageFont.ImageFont",
) -> None:
    """A bar a line, from a common zero; red speaks for an anomaly, blue against it.

    Components and atoms have a scale each.
    """
    zero = left + _NAME + _BAR // 2
    parted = next((number for number, (_, value) in enumerate(bars) if value is None), len(bars))
    for number, (name, value) in enumerate(bars):
        y = _GAP + number * _ROW
        pen.text((left, y), name, fill=_INK, font=font)
        if value is None:
            continue
        group = bars[:parted] if number < parted else bars[parted:]
        longest = max(abs(each) for _, each in group if each is not None) or 1.0
        end = zero + round(value / longest * _BAR / 2)
        pen.rectangle((min(zero, end), y + 2, max(zero, end), y + 13), fill=TOWARDS[value > 0])
        pen.line((zero, y, zero, y + _ROW), fill=_FAINT)
        pen.text((zero + _BAR // 2 + _GAP, y), f"{value:+.3f}", fill=_INK, font=font)

"""What the pages have in common: how a template is filled, and how numbers are written."""

import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spg_pipe.decision.heat_maps import OPACITY
from spg_pipe.errors import SpgError, one_line, printable
from spg_pipe.images.reading import read_header
from spg_pipe.report.tables import UNDEFINED

ASSETS = ("report.css", "report.js")
"""Files beside every page."""


def environment() -> Environment:
    """Templates of this room: everything that they show is escaped and printable."""
    made = Environment(
        finalize=_printable,
        loader=PackageLoader("spg_pipe", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {each.__name__: each for each in (breakable, fixed, known, per_cent, signed)}
    made.globals["opacity"] = OPACITY
    return made


def write_assets(folder: Path) -> None:
    """Write what a folder of pages shares: its style and its script, with a network or without."""
    for name in ASSETS:
        (folder / name).write_bytes((resources.files("spg_pipe.report") / name).read_bytes())


def _printable(value: object) -> object:
    """What the page shows of a value; markup was made from such values."""
    return one_line(printable(value)) if type(value) is str else value


def breakable(path: str) -> Markup:
    """A path that a narrow page breaks behind its slashes, escaped."""
    return Markup("<wbr>").join(re.split("(?<=/)", one_line(printable(path))))


def known(value: Any) -> bool:
    """Whether a cell of a table holds a value: neither None nor NaN."""
    return not pd.isna(value)


def fixed(value: float | None, digits: int = 3) -> str:
    """0.123 or −0.123, or a dash."""
    return f"{value:.{digits}f}".replace("-", "−") if known(value) else UNDEFINED


def signed(value: float | None, digits: int = 3) -> str:
    """+0.123 or −0.123, or a dash."""
    return f"{value:+.{digits}f}".replace("-", "−") if known(value) else UNDEFINED


def per_cent(value: float | None) -> str:
    """A share as 12.3 %: one digit after the point, below 1 % two that count; or a dash."""
    if value is None or not known(value):
        return UNDEFINED
    part = 100 * value
    return f"{part:.1f} %" if part == 0 or part >= 1 else f"{part:#.2g} %"


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of a picture file, pixels, from its header."""
    height, width = read_header(path, "image", exif=False).size
    return width, height


def require_replaceable(out: Path, what: Literal["report", "atlas"]) -> None:
    """Refuse, with an `SpgError`, to replace a folder that is no such page: someone's work."""
    page, sign = out / "index.html", f'<meta name="generator" content="spg-pipe {what}">'
    if out.is_dir() and any(out.iterdir()):
        head = page.read_text(encoding="utf-8", errors="replace")[:1000] if page.is_file() else ""
        if sign not in head:
            raise SpgError(
                f"{out} holds files that are not of spg-pipe's {what}, and would be replaced as a "
                "whole. Name a folder that is new or empty, or remove it first."
            )


def atom_name(layer: str, atom: int) -> str:
    """How an atom is called on pages, and its anchor in the atlas."""
    return f"{layer}-{atom}"

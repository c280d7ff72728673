"""A page as a test reads it."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

VOID = {"meta", "img", "link", "br", "input", "wbr"}


class Page(HTMLParser):
    """Tags, text and links of a page; fails on tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.alts: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        found = dict(attrs)
        self.links += [value for key in ("href", "src") if (value := found.get(key))]
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag == "script":
            assert found.get("src"), "a script in the page itself"
        if tag == "img":
            self.alts.append(found.get("alt") or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"th", "td"} & set(self._open):
            self.rows[-1][-1] += data


def require_complete(page: Page, folder: Path) -> None:
    """Nothing from elsewhere; what links and scripts name is there, also within other pages."""
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        parts = urlparse(link)
        assert not parts.scheme
        assert not parts.netloc
        path = folder / unquote(parts.path)
        assert path.is_file() or not parts.path
        if parts.fragment:
            assert parts.fragment in (ids_of(path) if parts.path else page.ids)


@cache
def ids_of(path: Path) -> list[str]:
    """The anchors of a page."""
    return Page(path).ids


def linked_files(root: Path) -> set[Path]:
    """Every page below a folder, each complete, and all files that they lead to."""
    found = set()
    for path in root.rglob("*.html"):
        page = Page(path)
        require_complete(page, path.parent)
        links = (unquote(urlparse(link).path) for link in page.links)
        found |= {path.resolve(), *((path.parent / link).resolve() for link in links if link)}
    return found

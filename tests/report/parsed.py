"""A page as a test reads it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

VOID = {"meta", "img", "link", "br"}


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
    """Nothing from elsewhere, every link and script to something that is there."""
    assert len(page.ids) == len(set(page.ids))
    assert all(page.alts)
    for link in page.links:
        parts = urlparse(link)
        assert not parts.scheme
        assert not parts.netloc
        if parts.path:
            assert (folder / unquote(parts.path)).is_file()
        else:
            assert parts.fragment in page.ids

"""The report and the atlas in Chromium, from their files: `make test-browser`."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from browser.world import SCRIPT

pytestmark = pytest.mark.browser

PAGES = ["report", "gallery", "image", "atlas", "atlas-by-hand", "own", "own-image"]
WIDE, NARROW = 1280, 390
"""Window widths, pixels: of a laptop and of a phone."""
PAPER = 718
"""Of a page of A4 within its margins."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_from_its_file_alone_and_axe_finds_nothing_serious(visit, pages, name, dark):
    shown = visit(pages[name], width=NARROW, dark=dark)
    shown.value(EVERY_PICTURE)
    root = pages[
        "report" if name in ("gallery", "image") else "own" if "own" in name else name
    ].parent
    assert [url for url in shown.requests if not url.startswith(f"{root.as_uri()}/")] == []
    assert shown.value("[...document.images].filter(i => i.naturalWidth === 0).length") == 0
    assert shown.value("document.documentElement.scrollWidth") <= NARROW
    shown.page.set_viewport_size({"width": WIDE, "height": 900})
    assert shown.value("document.documentElement.scrollWidth") <= WIDE
    assert shown.value("getComputedStyle(document.body).backgroundColor") == (
        "rgb(22, 24, 27)" if dark else "rgb(255, 255, 255)"
    )
    assert shown.serious() == []
    shown.page.emulate_media(media="print")
    shown.page.set_viewport_size({"width": PAPER, "height": 900})
    assert shown.value("document.documentElement.scrollWidth") <= PAPER


EVERY_PICTURE = """
(async () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const images = [...document.images];
  images.forEach(i => i.loading = "eager");
  await Promise.all(images.map(i => i.complete ? 0 : new Promise(r => i.onload = i.onerror = r)));
})()
"""
"""Loads what waits until it is scrolled to, or until its category is opened."""


@pytest.mark.parametrize("name", ["report", "gallery", "atlas-by-hand", "own", "own-image"])
def test_markup_in_a_name_is_text(visit, pages, name):
    shown = visit(pages[name])
    assert SCRIPT in shown.value("document.body.textContent")
    assert shown.value("[...document.scripts].filter(s => s.text.includes('alert')).length") == 0


def test_an_atom_shows_what_it_looks_like_and_leads_to_its_place_in_the_atlas(visit, pages):
    shown = visit(pages["report"])
    atom = shown.page.locator(".why a:has(.look)").first
    look = atom.locator(".look")
    assert not look.is_visible()
    shown.page.keyboard.press("Tab")  # so that what gets the focus shows it
    atom.focus()
    expect(look).to_be_visible()
    name = atom.evaluate("a => a.hash.slice(1)")
    shown.page.keyboard.press("Enter")
    shown.page.wait_for_url("**/atlas/**")
    assert shown.page.title() == "spg-pipe atlas: aux, seed 1"
    target = shown.page.locator("article.atom:target")
    assert target.get_attribute("id") == name
    target = target.element_handle()
    shown.page.wait_for_function(
        "e => Math.abs(e.getBoundingClientRect().top - 450) < 451", arg=target
    )


@pytest.mark.parametrize("name", PAGES)
def test_everything_that_scrolls_or_leads_on_is_reached_by_keyboard(visit, pages, name):
    shown = visit(pages[name], width=NARROW)
    unreached = """[...document.querySelectorAll('*')].filter(e =>
        e.scrollWidth > e.clientWidth + 1
        && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
        && e.tabIndex < 0 && !e.querySelector('a')).length"""
    assert shown.value(unreached) == 0


@pytest.mark.parametrize("name", ["report", "gallery", "own"])
def test_pictures_far_below_are_there_before_the_page_is_printed(visit, pages, name):
    shown = visit(pages[name])
    assert shown.value("[...document.images].filter(i => i.loading === 'lazy').length") == 0
    loaded = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0)))"
    assert all(shown.value(loaded))


@pytest.mark.parametrize("name", PAGES)
def test_controls_are_large_enough_for_a_finger(visit, pages, name):
    small = """[...document.querySelectorAll("button, select, input, summary, nav a")]
        .map(e => [e, e.getBoundingClientRect()])
        .filter(([e, box]) => box.width > 0 && (box.height < 24 || box.width < 24))
        .map(([e]) => e.outerHTML)"""
    assert visit(pages[name], width=NARROW).value(small) == []

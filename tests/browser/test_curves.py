"""Curves in the report: pointed at, read by keyboard, hidden, printed, and without scripts."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from browser.conftest import Visit

pytestmark = pytest.mark.browser

PIXEL = "figure[data-curves='aux--target-pixel']"

NEXT_FRAME = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"


def shown_curves(visit, pages, **how) -> Visit:
    seen = visit(pages["report"], **how)
    seen.page.locator(PIXEL).scroll_into_view_if_needed()
    seen.page.locator(f"{PIXEL}.live canvas").first.wait_for()
    seen.value(NEXT_FRAME)  # it is given its width
    return seen


def painted(seen: Visit) -> dict[str, int]:
    """Colour → how many opaque pixels of the first panel have it."""
    return seen.page.locator(f"{PIXEL} canvas").first.evaluate(
        """c => { const copy = new OffscreenCanvas(c.width, c.height).getContext('2d');
        copy.drawImage(c, 0, 0);
        const {data} = copy.getImageData(0, 0, c.width, c.height), found = {};
        for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) {
          const colour = data.slice(i, i + 3).join(' ');
          found[colour] = (found[colour] ?? 0) + 1;
        }
        return found }"""
    )


def test_a_name_is_hidden_and_shown_by_keyboard(visit, pages):
    seen = shown_curves(visit, pages)
    button = seen.page.locator(f"{PIXEL} table.legend button").first
    assert button.get_attribute("aria-pressed") == "true"
    before = painted(seen)
    button.focus()
    seen.page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    seen.value(NEXT_FRAME)
    assert 0 < sum(painted(seen).values()) < sum(before.values())
    seen.page.keyboard.press("Space")
    seen.value(NEXT_FRAME)
    assert button.get_attribute("aria-pressed") == "true"
    assert painted(seen) == before


def test_arrow_keys_read_the_values_of_a_panel(visit, pages):
    seen = shown_curves(visit, pages)
    panel = seen.page.get_by_role("slider", name="Pixel ROC: false-positive rate")
    panel.focus()
    seen.page.keyboard.press("End")
    assert panel.get_attribute("aria-valuenow") == "1"
    assert "1.000" in panel.get_attribute("aria-valuetext")
    seen.page.keyboard.press("ArrowLeft")
    assert panel.get_attribute("aria-valuenow") == "0.9975"
    expect(seen.page.locator(f"{PIXEL} thead th").nth(1)).to_have_text(re.compile(r"at 0\.998$"))


def test_the_pointer_reads_the_values_too(visit, pages):
    seen = shown_curves(visit, pages)
    box = seen.page.locator(f"{PIXEL} .u-over").first.bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    head = seen.page.locator(f"{PIXEL} thead th").nth(1)
    expect(head).to_have_text(re.compile(r"at 0\.(5$|49)"))
    expect(seen.page.locator(f"{PIXEL} table.legend tbody td").first).not_to_be_empty()


def test_ink_follows_the_scheme_of_colours(visit, pages):
    seen = shown_curves(visit, pages)
    black, white = "26 26 26", "228 228 226"
    assert painted(seen)[black] > 100
    assert white not in painted(seen)
    seen.page.emulate_media(color_scheme="dark")
    seen.value(NEXT_FRAME)
    assert painted(seen)[white] > 100
    assert black not in painted(seen)


@pytest.mark.parametrize("how", [{"scripts": False}, {"medium": "print"}], ids=["bare", "printed"])
def test_on_paper_and_without_scripts_the_drawing_is_there(visit, pages, how):
    seen = visit(pages["report"], **how)
    picture = seen.page.locator(f"{PIXEL} img.curves")
    assert picture.is_visible()
    assert picture.evaluate("i => i.naturalWidth") > 0
    assert not seen.page.locator(f"{PIXEL} .drawn").is_visible()


def test_on_a_screen_with_scripts_it_is_not(visit, pages):
    seen = shown_curves(visit, pages, width=390)
    assert not seen.page.locator(f"{PIXEL} img.curves").is_visible()
    canvas = seen.page.locator(f"{PIXEL} canvas").first.bounding_box()
    assert canvas["x"] >= 0
    assert canvas["x"] + canvas["width"] <= 390

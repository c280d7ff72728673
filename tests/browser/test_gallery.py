"""A gallery, of the report and of own images: threshold, filters, opacity, sorting, keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from browser.world import SCRIPT

pytestmark = pytest.mark.browser


@pytest.fixture
def own(visit, pages) -> Page:
    return visit(pages["own"]).page


@pytest.fixture
def gallery(visit, pages) -> Page:
    return visit(pages["gallery"]).page


def count(page: Page, name: str) -> int:
    return int(page.locator(f"#{name}").inner_text())


def shown(page: Page) -> list[str]:
    """Names of the images that are not filtered out, in their order."""
    # Inner text stays empty until the next frame lays out what `content-visibility` left aside.
    return page.locator("#gallery figure:visible .name").all_text_contents()


def test_the_slider_moves_the_counts_and_says_so(own):
    assert (count(own, "above"), count(own, "below")) == (2, 2)
    slider = own.get_by_role("slider", name=re.compile("Threshold"))
    slider.focus()
    own.keyboard.press("Home")
    assert (count(own, "above"), count(own, "below")) == (4, 0)
    assert own.locator("#gallery .verdict").all_text_contents() == ["anomalous"] * 4
    own.keyboard.press("End")
    assert (count(own, "above"), count(own, "below")) == (0, 4)
    expect(own.locator("#threshold-says")).to_contain_text("moved by hand")
    expect(own.locator("#counts-said")).to_have_text("Anomalous 0, Normal 4")
    own.get_by_role("button", name="Back to the start").click()
    assert (count(own, "above"), count(own, "below")) == (2, 2)
    expect(own.locator("#threshold-says")).to_contain_text("Of a test")


def test_a_typed_threshold_is_taken_wherever_it_lies_and_what_is_none_is_said(own):
    typed = own.locator("#threshold-value")
    typed.fill("999")
    typed.press("Enter")
    assert (count(own, "above"), count(own, "below")) == (0, 4)
    expect(own.locator("#threshold-says")).to_contain_text("Threshold 999, moved by hand")
    typed.fill("")
    typed.press("Enter")
    assert typed.evaluate("e => e.matches(':focus') && e.validity.valueMissing")
    assert (count(own, "above"), count(own, "below")) == (0, 4)


def test_precision_and_recall_follow_the_threshold(gallery):
    total = count(gallery, "tp") + count(gallery, "fn")
    normal = count(gallery, "fp") + count(gallery, "tn")
    assert (total, normal) == (1, 3)
    gallery.get_by_role("slider", name=re.compile("Threshold")).focus()
    gallery.keyboard.press("Home")
    assert [count(gallery, name) for name in ("tp", "fn", "fp", "tn")] == [1, 0, 3, 0]
    assert gallery.locator("#precision").inner_text() == "0.250"
    assert gallery.locator("#recall").inner_text() == "1.000"
    gallery.keyboard.press("End")
    assert [count(gallery, name) for name in ("tp", "fn", "fp", "tn")] == [0, 1, 0, 3]
    assert gallery.locator("#precision").inner_text() == "–"


def test_the_histogram_is_moved_by_pointer_and_shows_the_calibration(own):
    box = own.locator("#histogram").bounding_box()
    own.mouse.click(box["x"] + 12, box["y"] + 60)
    assert count(own, "above") == 4
    label = own.locator("#histogram svg").get_attribute("aria-label")
    assert "4 these images, 3 normal images of the calibration" in label


def test_images_are_filtered_by_verdict_group_and_name(own):
    own.locator("#verdict").select_option("anomalous")
    assert len(shown(own)) == 2
    expect(own.locator("#shown")).to_contain_text("2 of 4 images")
    own.locator("#verdict").select_option("")
    own.locator("#category").select_option(label="two (2)")
    assert sorted(name.split("/")[0] for name in shown(own)) == ["two", "two"]
    assert count(own, "above") + count(own, "below") == 2
    own.get_by_label("Name has").fill("SCRIPT")
    (name,) = shown(own)
    assert name == f"two/{SCRIPT}"


def test_opacity_is_moved_by_keyboard_and_outlines_are_hidden(own):
    overlay = own.locator("#gallery img.map").first
    slider = own.get_by_label("Opacity of maps")
    slider.focus()
    own.keyboard.press("Home")
    assert overlay.evaluate("e => getComputedStyle(e).opacity") == "0"
    own.keyboard.press("End")
    assert overlay.evaluate("e => getComputedStyle(e).opacity") == "1"
    outline = own.locator("#gallery img.outline").first
    assert outline.is_visible()
    own.get_by_label("Outlines of regions").press("Space")
    assert not outline.is_visible()


def test_an_image_is_opened_by_keyboard_and_leads_on_and_back(own):
    names = shown(own)
    own.get_by_role("slider", name=re.compile("Threshold")).focus()
    own.keyboard.press("End")
    expect(own).to_have_url(re.compile("#.*threshold"))
    own.locator("#gallery figure a").first.focus()
    own.keyboard.press("Enter")
    heading = own.locator("h1")
    expect(heading).to_have_text(names[0])
    own.get_by_role("link", name="next").press("Enter")
    expect(heading).to_have_text(names[1])
    own.go_back()
    own.go_back()
    assert count(own, "above") == 0  # the threshold is where it was left


def test_columns_are_sorted_by_keyboard(own):
    table = own.locator("table.sortable").first
    head = table.locator("th").nth(1)

    def order() -> list[str]:
        return table.locator("tbody td:nth-child(2)").all_inner_texts()

    assert order() == ["2", "3"]
    head.get_by_role("button").focus()
    own.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert order() == ["3", "2"]
    own.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert order() == ["2", "3"]


def test_without_scripts_everything_that_was_computed_is_there(
    visit: Callable[..., object], pages
) -> None:
    page = visit(pages["own"], scripts=False).page
    assert len(shown(page)) == 4
    assert (count(page, "above"), count(page, "below")) == (2, 2)
    assert not page.locator("#threshold").is_visible()


def test_steps_there_and_back_end_at_the_start(gallery):
    slider = gallery.get_by_role("slider", name=re.compile("Threshold"))
    start = gallery.locator("#threshold-says").inner_text()
    slider.focus()
    for key in ("ArrowRight", "PageUp", "ArrowLeft", "PageDown"):
        gallery.keyboard.press(key)
    assert gallery.locator("#threshold-says").inner_text() == start


def test_figures_name_what_they_stand_on(visit, pages):
    says = ("split", "backbone efficientnet-lite0", "method protocol", "metrics protocol", "seed 1")
    for name in ("gallery", "image"):
        text = visit(pages[name]).page.locator("body").inner_text()
        assert [each for each in says if each not in text] == []
    assert "Said." in visit(pages["own-image"]).page.locator("body").inner_text()

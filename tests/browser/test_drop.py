"""The page of `serve`: an image is dropped or chosen, and its decision, regions and why appear."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from deploy.serving import Server, picture, served
from playwright.sync_api import Page, expect

from browser.conftest import Visit
from spg_pipe.detector.model import Detector

pytestmark = pytest.mark.browser

NAME = "<script>alert(1)</script>.png"


@pytest.fixture(scope="module")
def server(tiny_detector: Detector) -> Iterator[Server]:
    with served(tiny_detector, threshold=-100.0) as running:
        yield running


def dropped(page: Page, name: str, data: bytes) -> None:
    """A file that is dropped on the page."""
    page.evaluate(
        """([name, data]) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, {type: "image/png"}));
          document.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
        }""",
        [name, base64.b64encode(data).decode()],
    )


def judged(seen: Visit, name: str = NAME) -> Page:
    dropped(seen.page, name, picture())
    expect(seen.page.locator("#result")).to_be_visible()
    seen.value("Promise.all([...document.images].map(image => image.src && image.decode()))")
    return seen.page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_dropped_image_is_decided_and_explained(visit, server, width, dark):
    seen = visit(server.url, width=width, dark=dark)
    page = judged(seen)
    expect(page.locator("#verdict")).to_have_text("Anomalous")
    expect(page.locator("#status")).to_have_text(f"{NAME}: Anomalous")
    assert page.locator("#regions tbody tr").count() > 0
    assert page.locator("#outlines polygon").count() > 0
    assert page.locator("#components li").count() > 0
    expect(page.locator("#map")).to_have_js_property("naturalWidth", 48)
    assert seen.value("document.documentElement.scrollWidth") <= width
    assert seen.serious() == []


def test_the_page_alone_has_no_serious_finding(visit, server):
    assert visit(server.url).serious() == []
    assert visit(server.url, dark=True).serious() == []


def test_a_file_is_chosen_by_keyboard(visit, server):
    page = visit(server.url).page
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "file":
            break
    assert page.evaluate("document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    expect(page.locator("#verdict")).to_have_text("Anomalous")


def test_opacity_and_outlines(visit, server):
    page = judged(visit(server.url))
    page.locator("#opacity").focus()
    page.keyboard.press("Home")
    assert page.locator("#map").evaluate("e => getComputedStyle(e).opacity") == "0"
    page.locator("#outlined").press("Space")
    assert not page.locator("#outlines").is_visible()


def test_what_is_no_image_is_said_and_the_page_goes_on(visit, server):
    seen = visit(server.url)
    dropped(seen.page, "notes.txt", b"no picture")
    problem = seen.page.locator("#problem")
    expect(problem).to_be_visible()
    assert "notes.txt" in problem.inner_text()
    # The browser logs any answer of 4xx by itself.
    assert [said for said in seen.complaints if "422" not in said] == []
    dropped(seen.page, "empty.png", b"")
    expect(problem).to_contain_text("empty.png: The body is empty")
    seen.complaints.clear()
    judged(seen, "fine.png")
    expect(problem).not_to_be_visible()


def test_of_several_files_the_first_is_judged_and_the_page_says_so(visit, server):
    page = visit(server.url).page
    data = base64.b64encode(picture()).decode()
    page.evaluate(
        """(data) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          for (const name of ["a.png", "b.png"]) transfer.items.add(new File([bytes], name));
          document.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
        }""",
        data,
    )
    expect(page.locator("#status")).to_contain_text("a.png: Anomalous (the first of 2 files")


def test_figures_say_their_threshold_and_protocol_and_a_small_image_is_enlarged(visit, server):
    page = judged(visit(server.url))
    expect(page.locator("#regions caption")).to_contain_text("pixel threshold, 0.5,")
    expect(page.locator("#facts")).to_contain_text("Method protocol")
    photo, overlay = (page.locator(f"#{name}").bounding_box() for name in ("photo", "map"))
    assert photo == overlay
    assert photo["width"] > 150


def test_scores_that_round_to_the_threshold_have_all_digits(visit, server):
    page = judged(visit(server.url))
    score, threshold = page.evaluate(
        """() => {
          const line = JSON.parse(document.getElementById("json").textContent);
          show({...line, score: 0.50001, threshold: 0.5, photo_jpeg: "", overlay_jpeg: ""});
          return [...document.querySelectorAll("#facts dd")].slice(0, 2).map(e => e.textContent);
        }"""
    )
    assert (score, threshold) == ("0.50001", "0.5")

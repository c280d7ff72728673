"""The report and the atlas in Chromium, from their files: `make test-browser`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from layouts import painted, save, texture, write_mvtec
from report.conftest import made
from report.handmade import atlas_folder

from browser.chromium import Chromium, chromium, executable
from spg_pipe.detector.model import Detector
from spg_pipe.pipeline.atlas import atlas
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.targets import report
from spg_pipe.recipe.params import parse_params

pytestmark = pytest.mark.browser

SCRIPT = "<script>alert(1)</script>.png"
WIDE_AND_NARROW = [1280, 390]
"""Window widths, pixels: of a laptop and of a phone."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """One browser for all pages."""
    path = executable()
    if path is None:
        pytest.fail("Chromium is not installed: `apt-get install chromium` on Debian")
    with chromium(path) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report and an atlas that it links, of images one of which has markup for a name."""
    import numpy as np

    root = tmp_path_factory.mktemp("browser")
    write_mvtec(root / "aux", ("tile",), good=2, per_defect=2, seed=1)
    rng = np.random.default_rng(0)
    for number in range(3):
        save(texture((48, 64), rng), root / "target" / "good" / f"{number}.png")
    image, mask = painted(texture((48, 64), rng), rng)
    save(image, root / "target" / "dent" / SCRIPT)
    save(mask * np.uint8(255), root / "target" / "ground_truth" / "dent" / SCRIPT)
    recipe = {
        "name": "browser",
        "artifacts": root / "artifacts",
        "seeds": (1,),
        "datasets": [
            {"name": "aux", "layout": "mvtec", "root": root / "aux"},
            {"name": "target", "layout": "folder", "root": root / "target"},
        ],
        "auxiliaries": ["aux"],
        "directions": [{"aux": "aux", "target": "target"}],
        "backbone": {"alias": "efficientnet-lite0", "image_size": 64},
        "sae": {"dict_size": 32, "k": 4, "tokens": 2400, "batch_tokens": 8},
        "guides": {"atoms": 5},
    }
    world = made(parse_params(recipe, "the test's recipe"), root, extract=True)
    run = RecipeRun(world.params, Console(verbosity=0), device="cpu", workers=1)
    made_atlas = atlas(run)[0]
    detector = Detector.load(world.paths.detector("aux", 1))
    atlas_folder(detector, root / "by-hand", ("tile", SCRIPT), every=True)
    return {
        "report": report(run),
        "atlas": made_atlas / "index.html",
        "atlas-by-hand": root / "by-hand" / "index.html",
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDE_AND_NARROW)
@pytest.mark.parametrize("name", ["report", "atlas", "atlas-by-hand"])
def test_a_page_opens_from_its_file_alone(browser, pages, name, width, dark):
    browser.open(pages[name], width=width, dark=dark)
    browser.evaluate(EVERY_PICTURE)
    assert browser.complaints() == []
    root = pages[name].parent.as_uri()
    assert [url for url in browser.requests() if not url.startswith(f"{root}/")] == []
    assert browser.evaluate("[...document.images].filter(i => i.naturalWidth === 0).length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(22, 24, 27)" if dark else "rgb(255, 255, 255)"
    )


EVERY_PICTURE = """
(async () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const images = [...document.images];
  images.forEach(i => i.loading = "eager");
  await Promise.all(images.map(i => i.complete ? 0 : new Promise(r => i.onload = i.onerror = r)));
})()
"""
"""Loads what waits until it is scrolled to, or until its category is opened."""


@pytest.mark.parametrize("name", ["report", "atlas-by-hand"])
def test_markup_in_a_name_is_text(browser, pages, name):
    browser.open(pages[name], width=1280, dark=False)
    assert SCRIPT in browser.evaluate("document.body.textContent")
    assert browser.evaluate("document.scripts.length") == 0


def test_an_atom_shows_what_it_looks_like_and_leads_to_its_place_in_the_atlas(browser, pages):
    browser.open(pages["report"], width=1280, dark=False)
    shown = "getComputedStyle(document.querySelector('.why .look')).display"
    assert browser.evaluate(shown) == "none"
    browser.evaluate("document.querySelector('.why a:has(.look)').focus({focusVisible: true})")
    assert browser.evaluate(shown) == "block"
    name = browser.evaluate("document.querySelector('.why a:has(.look)').hash.slice(1)")
    browser.evaluate("document.querySelector('.why a:has(.look)').click()")
    browser.events.clear()
    browser.wait("Page.loadEventFired")
    assert browser.evaluate("document.title") == "spg-pipe atlas: aux, seed 1"
    top = f"document.getElementById('{name}').getBoundingClientRect().top"
    assert -1 < browser.evaluate(top) < 900
    assert browser.evaluate("document.querySelector('article.atom:target').id") == name


@pytest.mark.parametrize("name", ["report", "atlas"])
def test_everything_that_scrolls_or_leads_on_is_reached_by_keyboard(browser, pages, name):
    browser.open(pages[name], width=390, dark=False)
    unreached = """[...document.querySelectorAll('*')].filter(e =>
        e.scrollWidth > e.clientWidth + 1
        && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
        && e.tabIndex < 0 && !e.querySelector('a')).length"""
    assert browser.evaluate(unreached) == 0

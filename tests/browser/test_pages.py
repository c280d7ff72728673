"""The report and the atlas in Chromium, from their files: `make test-browser`."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import painted, save, texture, write_mvtec
from report.conftest import made
from report.handmade import atlas_folder

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
def test_a_page_opens_from_its_file_alone(visit, pages, name, width, dark):
    shown = visit(pages[name], width=width, dark=dark)
    shown.value(EVERY_PICTURE)
    root = pages[name].parent.as_uri()
    assert [url for url in shown.requests if not url.startswith(f"{root}/")] == []
    assert shown.value("[...document.images].filter(i => i.naturalWidth === 0).length") == 0
    assert shown.value("document.documentElement.scrollWidth") <= width
    assert shown.value("getComputedStyle(document.body).backgroundColor") == (
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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["report", "atlas", "atlas-by-hand"])
def test_axe_finds_nothing_serious(visit, pages, name, dark):
    shown = visit(pages[name], dark=dark)
    shown.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert shown.serious() == []


@pytest.mark.parametrize("name", ["report", "atlas-by-hand"])
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
    assert look.is_visible()
    name = atom.evaluate("a => a.hash.slice(1)")
    shown.page.keyboard.press("Enter")
    shown.page.wait_for_url("**/atlas/**")
    assert shown.page.title() == "spg-pipe atlas: aux, seed 1"
    target = shown.page.locator("article.atom:target")
    assert target.get_attribute("id") == name
    assert -1 < target.evaluate("e => e.getBoundingClientRect().top") < 900


@pytest.mark.parametrize("name", ["report", "atlas"])
def test_everything_that_scrolls_or_leads_on_is_reached_by_keyboard(visit, pages, name):
    shown = visit(pages[name], width=390)
    unreached = """[...document.querySelectorAll('*')].filter(e =>
        e.scrollWidth > e.clientWidth + 1
        && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
        && e.tabIndex < 0 && !e.querySelector('a')).length"""
    assert shown.value(unreached) == 0

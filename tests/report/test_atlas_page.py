"""The atlas page from tables written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from report.conftest import World
from report.handmade import LATENTS, atlas_folder
from report.parsed import Page, require_complete
from spg_pipe.detector.model import Detector
from spg_pipe.report.page import fixed, per_cent, signed

CATEGORIES = ("tile", "<script>alert(1)</script>.png")


@pytest.fixture(scope="module")
def detector(world: World) -> Detector:
    """The world's."""
    return Detector.load(world.paths.detector("aux", 111))


def page_of(detector: Detector, folder: Path, **options: bool) -> Page:
    """The page of an atlas written by hand."""
    atlas_folder(detector, folder, CATEGORIES, **options)
    return Page(folder / "index.html")


def names_of(detector: Detector) -> set[str]:
    """The anchors of its atoms."""
    return {
        f"{layer}-{atom}"
        for layer, guides in detector.layers.items()
        for atom in guides.atom_ids.tolist()
    }


@pytest.mark.parametrize("every", [False, True])
def test_the_atlas_needs_nothing_but_its_folder_and_every_atom_has_a_place(
    detector, every, tmp_path
):
    page = page_of(detector, tmp_path / "atlas", every=every)
    require_complete(page, tmp_path / "atlas")
    everything = {f"{layer}-{atom}" for layer in detector.layers for atom in range(LATENTS)}
    assert (everything if every else names_of(detector)) == set(page.ids) & everything
    assert ("All other latents" in page.text) == every


def test_atoms_stand_in_the_order_of_their_share_with_every_category(detector, tmp_path):
    content = atlas_folder(detector, tmp_path / "atlas", CATEGORIES)
    page = Page(tmp_path / "atlas" / "index.html")
    whole = content.atoms[content.atoms["category"].isna()].sort_values(
        "share_apart", ascending=False
    )
    expected = [f"{row.layer}-{row.atom}" for row in whole.itertuples()]
    table = [row[0] for row in page.rows if row and row[0] in expected]
    assert table == expected
    assert page.text.count("By category") == len(expected)
    assert [row[0] for row in page.rows].count(CATEGORIES[1]) == len(expected)
    assert "1 of 2" in page.text
    assert "Protocol" in page.text


def test_patches_most_like_an_atom_come_first(detector, tmp_path):
    page = page_of(detector, tmp_path / "atlas")
    text = (tmp_path / "atlas" / "index.html").read_text()
    rows = {row[0]: row for row in page.rows if row and row[0] in names_of(detector)}
    for name, row in rows.items():
        card = text[text.index(f'<article class="atom" id="{name}"') :].partition("</article>")[0]
        both = f"{name}-p.jpg" in card
        first = card.index("<figure"), card.index("</figure>")
        if "normal" in row:
            assert f'class="thumb" loading="lazy" src="crops/{name}.jpg"' in text
            assert f"crops/{name}.jpg" in card[slice(*first)]
            assert ("patches <em>least</em> like the atom" in card) == both
            assert row[-3] == "–"  # the latent's AP
        else:
            shown = f"{name}-p.jpg" if both else f"{name}.jpg"
            assert f'class="thumb" loading="lazy" src="crops/{shown}"' in text
            assert f"crops/{shown}" in card[slice(*first)]
            assert row[-3] != "–"
    assert {"normal", "anomaly"} <= {cell for row in rows.values() for cell in row}


def test_names_from_outside_appear_as_text(detector, tmp_path):
    page = page_of(detector, tmp_path / "atlas")
    assert CATEGORIES[1] in page.text
    assert "mini <111>" in page.text
    assert "<script" not in (tmp_path / "atlas" / "index.html").read_text()


def test_numbers_are_written_in_one_way():
    assert [fixed(0.12345), fixed(None), fixed(float("nan"))] == ["0.123", "–", "–"]
    assert [signed(-0.5, 2), signed(0.5)] == ["−0.50", "+0.500"]
    assert [per_cent(x) for x in (0.0, 0.5, 0.00123, None)] == ["0.0 %", "50.0 %", "0.12 %", "–"]

"""The HTML report on artefacts that the pipeline made."""

from __future__ import annotations

import json
import re
import shutil
from urllib.parse import urlparse

import numpy as np
import pandas as pd
import pytest
from layouts import write_mvtec
from PIL import Image

from report.conftest import SHOWN, TRICKY, built
from report.handmade import atlas_folder
from report.parsed import Page, linked_files
from spg_pipe.decision.rules import Published
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, printable
from spg_pipe.metrics import seeds_mean
from spg_pipe.pipeline import features, targets
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.targets import read_metrics
from spg_pipe.report.kinds import image_score_in_words
from spg_pipe.report.tables import text_table


def test_pages_are_complete_and_need_nothing_from_elsewhere(folder):
    files = {path.resolve() for path in folder.rglob("*") if path.is_file()}
    assert files == linked_files(folder)


def test_every_image_has_a_place_in_the_gallery_and_a_page_of_its_own(world, folder):
    scores = pd.read_parquet(world.paths.scores("aux", "target", 111) / "scores.parquet")
    gallery = folder / "aux--target"
    page = Page(gallery / "index.html")
    for row, image in scores.iterrows():
        text = Page(gallery / "images" / f"{row:05d}.html").text
        assert printable(image["path"]) in text
        assert f"{image['score']:.4f}".replace("-", "−") in text
        assert printable(image["path"]) in page.text


def test_page_names_protocols_seeds_data_and_artefacts(world, folder):
    text = Page(folder / "index.html").text
    assert "method protocol default; metrics protocol exact" in text
    assert "resolution model; accumulator sort; seeds 111, 112: mean ± sample" in text
    assert "Target target (test split); auxiliary aux; backbone efficientnet-lite0@64" in text
    scores = json.loads((world.paths.scores("aux", "target", 111) / "config.json").read_text())
    assert scores["fingerprint"][:16] in text
    assert scores["detector"]["fingerprint"][:16] in text
    assert scores["versions"]["torch"] in text
    assert "Non-commercial: aux: CC BY-NC 4.0" in text
    assert "the backbone has none; in its place the mean patch token" in text
    quality = json.loads((world.paths.sae("aux", 111) / "quality.json").read_text())
    assert f"{next(iter(quality['layers'].values()))['r2']:.3f}" in text


OF_CONTRAST = (
    "contrast of class means, in closed form; at most 5 atoms a pair",
    "contrast guides, additive rule",
)
OF_TRAINED = (
    "trained with masks, 2 epochs",
    "trained guides, published rule",
    "Temperatureτ = 0.07",
    "Detection feature",
)
OF_ADDITIVE = (
    "all colour is log odds of an anomaly",
    "each standardised over the patches of the auxiliary set",
    "log odds 0.5",
    "additive rule: log odds, a bias and a weighted sum of map_top, detection",
)
OF_PUBLISHED = (
    "all colour is the anomaly probability: from 0, like the normal guide (black)",
    "published rule: the probability of the detection feature (cls)",
)


@pytest.mark.parametrize(
    ("recipe", "said", "unsaid"),
    [
        ("world", OF_CONTRAST + OF_ADDITIVE, (*OF_TRAINED, *OF_PUBLISHED, "epochs", "probab")),
        ("published", OF_TRAINED + OF_PUBLISHED, (*OF_CONTRAST, *OF_ADDITIVE, "log odds")),
    ],
)
def test_every_statement_is_of_the_kind_of_guides_and_rule(recipe, said, unsaid, request, tmp_path):
    page = built(request.getfixturevalue(recipe), tmp_path / "out")
    text = page.text + " ".join(page.alts)
    assert [sentence for sentence in said if sentence not in text] == []
    # "Epochs" with a capital is the column of the SAE.
    assert [sentence for sentence in unsaid if sentence in text] == []
    curves = (tmp_path / "out" / "curves" / "aux-training.svg").read_text()
    drawn = recipe == "published"
    assert ("Guide losses" in curves) == ("losses of the guides" in text) == drawn


def test_the_image_score_is_told_as_it_is_weighed():
    said = image_score_in_words(Published(image_score="mix"))
    assert "0.5 × the detection feature's probability + 0.5 × the map's maximum" in said


def test_metrics_hold_the_figures_of_their_kind_alone(world, published):
    for recipe, kind in ((world, "contrast"), (published, "trained")):
        text = recipe.paths.metrics("aux", "target", 111).read_text()
        assert json.loads(text)["provenance"]["guides"]["kind"] == kind
        assert ("epochs" in text) == (kind == "trained")


def test_names_from_outside_are_escaped(folder):
    page = Page(folder / "index.html")
    assert SHOWN in page.text
    assert r"<own>\x07" in page.text
    source = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", source)
    assert SHOWN not in source
    assert "<own>" not in source
    gallery = Page(folder / "aux--target" / "index.html")
    assert SHOWN in gallery.text


def test_same_artefacts_give_the_same_bytes_and_an_old_report_is_replaced_as_a_whole(
    world, folder, tmp_path
):
    shutil.copytree(folder, tmp_path / "again")
    (tmp_path / "again" / "aux--target" / "images" / "stale.jpg").write_bytes(b"")
    built(world, tmp_path / "again")
    contents = []
    for root in (folder, tmp_path / "again"):
        files = sorted(path for path in root.rglob("*") if path.is_file())
        contents.append({str(file.relative_to(root)): file.read_bytes() for file in files})
    assert contents[0] == contents[1]
    assert any(name.endswith(".svg") for name in contents[0])
    assert not any(str(world.root).encode() in content for content in contents[0].values())


def test_of_one_seed_nothing_deviates_and_an_undefined_metric_is_a_dash(world, tmp_path):
    page = built(world.changed(seeds=(111,)), tmp_path / "out")
    assert "nan" not in re.findall(r"[a-z]+", page.text.lower())
    assert "Image AUROC, Image AP, Image F1-max of only-defects" in page.text
    assert "±" not in page.text
    assert "stability between seeds" not in page.text


def test_images_without_a_mask_have_image_metrics_and_no_curves(world, tmp_path):
    write_mvtec(tmp_path / "photos", ("tile",), good=3, per_defect=2, seed=4)
    rows = [row.model_dump() for row in world.params.datasets]
    rows[1] |= {"layout": "folder", "root": tmp_path / "photos" / "tile" / "test"}
    unmasked = world.copied(tmp_path).changed(datasets=rows, seeds=(111,))
    shutil.rmtree(unmasked.paths.store("target"))
    run = RecipeRun(unmasked.params, Console(verbosity=0), device="cpu", workers=1)
    features.extract(run, unmasked.params.datasets[1])
    targets.score(run, "target")
    targets.evaluate(run, "target")
    page = built(unmasked, tmp_path / "out")
    assert "Image AUROC" in page.text
    assert "nan" not in re.findall(r"[a-z]+", page.text.lower())
    assert not list((tmp_path / "out" / "curves").glob("target*"))


def test_the_page_and_the_terminal_show_the_same_cells(world, folder, tmp_path):
    assert '<th scope="col">published</th>' not in (folder / "index.html").read_text()
    figure = {"aux": "aux", "target": "target", "image_auroc": 91.4, "source": "arXiv <1>"}
    params = world.changed(published=(figure,)).params
    page = built(world.changed(published=(figure,)), tmp_path / "one")
    assert "Published, aux → target: arXiv <1>." in page.text
    seeds = [read_metrics(world.paths.metrics("aux", "target", seed)) for seed in (111, 112)]
    lines = text_table(seeds_mean(seeds), params.published[0]).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Category"))
    terminal = [re.split(" {2,}", line) for line in lines[start:] if set(line) != {"─"}][:5]
    assert [printable(row[0]) for row in terminal[1:3]] == [SHOWN, "only-defects"]
    assert terminal[1][0] == TRICKY
    terminal[1][0] = SHOWN
    assert terminal[4][:2] == ["published", "0.914"]
    assert any("±" in cell for cell in terminal[3])
    start = next(number for number, row in enumerate(page.rows) if row[:1] == ["Category"])
    columns = [page.rows[start].index(name) for name in terminal[0]]
    assert [[row[column] for column in columns] for row in page.rows[start : start + 5]] == terminal


def test_what_is_gone_is_named_and_the_rest_is_shown(world, tmp_path):
    """Photographs, the target's store, an SAE with its detector, metrics of a seed or direction."""
    poorer = world.copied(tmp_path)
    shutil.rmtree(poorer.paths.store("target"))
    shutil.rmtree(poorer.paths.sae("aux", 112))
    shutil.rmtree(poorer.paths.detector("aux", 112))
    datasets = [dataset.model_dump() for dataset in world.params.datasets]
    datasets[1]["root"] = tmp_path / "moved-away"
    poorer = poorer.changed(
        datasets=datasets,
        seeds=(111, 112, 113),
        auxiliaries=("aux", "target"),
        directions=({"aux": "aux", "target": "target"}, {"aux": "target", "target": "aux"}),
    )
    page = built(poorer, tmp_path / "out")
    for said in (
        "The folder of target is not there any more",
        "The target's feature store is no longer there",
        "Anomalous images with the highest scores",
        "The SAE of seed 112 is no longer there.",
        "No metrics yet for seed 113",
        "No metrics yet for target → aux.",
    ):
        assert said in page.text
    assert not any("outlined" in alt for alt in page.alts)
    assert not any(re.search(r"/\d+\.jpg$|-mask\.png$", link) for link in page.links)
    assert any(link.endswith("-map.png") for link in page.links)


def test_a_photograph_that_cannot_be_read_is_named(world, tmp_path):
    shutil.copytree(world.root / "target", tmp_path / "target")
    broken = tmp_path / "target" / "only-defects" / "test" / "crack" / "000.png"
    broken.write_bytes(b"not an image")
    datasets = [dataset.model_dump() for dataset in world.params.datasets]
    datasets[1]["root"] = tmp_path / "target"
    page = built(world.changed(datasets=datasets), tmp_path / "out")
    said = "1 of the 9 photographs to show could not be read (only-defects/test/crack/000.png)"
    assert said in page.text


def test_pictures_have_the_image_s_aspect_ratio(folder):
    images = folder / "aux--target" / "images"
    for pattern, size in (
        ("?????.jpg", (64, 48)),
        ("*-mask.png", (64, 48)),
        ("*-map.png", (64, 64)),
    ):
        files = sorted(images.glob(pattern))
        assert len(files) == (6 if "mask" in pattern else 9)
        for file in files:
            with Image.open(file) as picture:
                assert picture.size == size


def test_a_folder_that_is_no_report_is_not_replaced(world, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SpgError, match="not of spg-pipe's report"):
        built(world, tmp_path)
    assert (tmp_path / "thesis.tex").is_file()


def test_the_quality_of_saes_and_their_stability_are_told(folder):
    text = Page(folder / "index.html").text
    assert "Almost dead" in text
    assert len(re.findall(r"Layer s\d+: stability between seeds [01]\.\d{3}", text)) == 2
    svg = next((folder / "curves").glob("aux-training.svg")).read_text()
    assert "How often latents are active" in svg


def test_a_picture_s_parts_add_up_to_the_difference_of_its_score(world, folder):
    page = Page(folder / "index.html")
    first, last = "guides in the map", "score"
    numbers = [
        (row[0], [float(cell.replace("−", "-")) for cell in row[1:]])
        for row in page.rows
        if row and re.match("guides |self-distance |constant|score$", row[0])
    ]
    assert [name for name, _ in numbers].count(last) == 7
    total = np.zeros(3)
    for name, cells in numbers:
        assert cells[0] - cells[1] == pytest.approx(cells[2], abs=0.011)
        total = np.array(cells) + (0 if name == first else total)
        if name == last:
            assert total - cells == pytest.approx(cells, abs=0.025)
    assert "mean of 3 normal images" in page.text
    assert "mean of 2 images" in page.text  # a category without normal ones
    assert re.search(r"These 4 of \d+ atoms: [+−]\d+\.\d+ of [+−]\d+\.\d+\.", page.text)
    assert "spg-pipe atlas makes a page" in " ".join(page.text.split())
    assert "Point at an atom" not in page.text
    maps = list((folder / "maps").glob("*-atom-?.jpg"))
    assert maps
    for file in maps:
        with Image.open(file) as picture:
            assert picture.size == (64, 48)


def test_atoms_are_linked_to_the_atlas_and_shown_from_copies(world, tmp_path):
    linked = world.copied(tmp_path)
    detector = Detector.load(linked.paths.detector("aux", 111))
    atlas_folder(detector, linked.paths.atlas("aux", 111), ("one", "two"))
    out = linked.paths.report
    page = built(linked, out)
    links = [urlparse(link) for link in page.links]
    targets = {(out / link.path).resolve() for link in links if link.path.startswith("../")}
    atlas = linked.paths.atlas("aux", 111) / "index.html"
    assert targets == {atlas.resolve()}
    names = {link.fragment for link in links if link.path.startswith("../")}
    assert names <= set(Page(atlas).ids)
    strips = {link.path for link in links if link.path.startswith("atoms/")}
    assert strips == {f"atoms/{path.name}" for path in (out / "atoms").iterdir()}
    assert "Point at an atom" in page.text


def test_a_changed_atlas_is_refused(world, tmp_path):
    changed = world.copied(tmp_path)
    atlas = changed.paths.atlas("aux", 111)
    atlas_folder(Detector.load(changed.paths.detector("aux", 111)), atlas, ("one", "two"))
    pd.read_parquet(atlas / "atoms.parquet").assign(share=0.0).to_parquet(atlas / "atoms.parquet")
    with pytest.raises(SpgError, match=r"atoms.parquet.*spg-pipe atlas"):
        built(changed, changed.paths.report)


def test_without_the_detector_or_its_tokens_no_atoms_are_shown(world, tmp_path):
    poorer = world.copied(tmp_path)
    shutil.rmtree(poorer.paths.detector("aux", 111))
    page = built(poorer, tmp_path / "out")
    assert "this image" not in page.text
    assert "Why a picture has its score" not in page.text
    assert not list((tmp_path / "out" / "maps").glob("*-atom-*"))


def test_the_atlas_of_another_detector_is_not_linked(world, tmp_path):
    other = world.copied(tmp_path)
    detector = Detector.load(other.paths.detector("aux", 112))
    atlas_folder(detector, other.paths.atlas("aux", 111), ("one", "two"))
    page = built(other, other.paths.report)
    assert not any(link.startswith("../") for link in page.links)
    assert "spg-pipe atlas makes a page" in " ".join(page.text.split())

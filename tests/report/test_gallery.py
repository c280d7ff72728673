"""Galleries: names from anywhere, thresholds, verdicts, pictures, with labels and without."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.parsed import Page, linked_files
from spg_pipe.errors import one_line, printable
from spg_pipe.metrics.operating import AtThreshold
from spg_pipe.metrics.tables import MetricsRow, MetricsTable, RowContext, RowCounts
from spg_pipe.report import direction
from spg_pipe.report.gallery import (
    VERDICTS,
    Gallery,
    GalleryImage,
    Threshold,
    rates,
    verdict,
    write_gallery,
)
from spg_pipe.report.pictures import LONGEST, MAP_LONGEST, ImageFiles, map_picture, write_pictures

HOSTILE = [
    "<script>alert(1)</script>.png",
    "</script><script>alert(2)</script>.png",
    "\"quotes' and > & < signs.png",
    "two\nlines.png",
    "not utf-8 \udcff.png",
    "separators \u2028 \u2029.png",
    "turned \u202e round.png",
    "{{ 7 * 7 }} %s ${1}.png",
]
SHOWN = (0.25, 0.75)


def image(number: int, folder: Path | None = None, **other: object) -> GalleryImage:
    """An image, whose pictures are written if a folder is given."""
    pictures = ImageFiles(f"{number:05d}", (12, 16))
    if folder is not None:
        pixels = np.full((12, 16, 3), 90, np.uint8)
        pictures = write_pictures(folder / "images", f"{number:05d}", pixels, flat(0.5), SHOWN)
    values = {"group": "", "defect": "", "label": "unknown", "score": float(number)}
    given = {"name": f"{number}.png", "files": pictures, "size": (12, 16)} | values | other
    return GalleryImage(**given)  # type: ignore[arg-type]


def flat(value: float, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.full(size, value, np.float32)


def written(folder: Path, gallery: Gallery, images: list[GalleryImage]) -> Page:
    """By a stream of images, as a caller may give it."""

    def stream() -> Iterator[GalleryImage]:
        yield from images

    return Page(write_gallery(folder, gallery, stream()))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_wherever_it_stands(name, tmp_path):
    (tmp_path / "images").mkdir()
    images = [
        image(0, tmp_path, name=name, group=name, defect=name, facts=[(name, name)]),
        image(1, tmp_path, name=name, group="other", label="anomalous"),
    ]
    thresholds = {name: Threshold(0.5, name)}
    page = written(tmp_path, Gallery(name, thresholds, notes=[name], low=name), images)
    one = Page(tmp_path / "images" / "00000.html")
    shown = one_line(printable(name))
    assert page.text.count(shown) > 5
    assert one.text.count(shown) > 5
    assert page.tags.count("script") == one.tags.count("script") == 1
    for path in tmp_path.rglob("*.html"):
        assert not re.search("[\x00-\x08\x0b-\x1f\u2028\u2029\u202e]", path.read_text("utf-8"))
    files = {path.resolve() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == linked_files(tmp_path)


def test_a_score_and_a_threshold_that_differ_read_differently(tmp_path):
    (tmp_path / "images").mkdir()
    images = [image(0, tmp_path, score=-0.5), image(1, tmp_path, score=0.5)]
    written(tmp_path, Gallery("near", {"": Threshold(math.nextafter(0.5, 0), "close")}), images)
    low, high = (Page(tmp_path / "images" / f"0000{stem}.html").text for stem in (0, 1))
    assert "score −0.5000, not above the threshold 0.5000" in low
    assert "score 0.5, above the threshold 0.49999999999999994" in high


def test_pages_lead_to_one_another_the_highest_score_first(tmp_path):
    (tmp_path / "images").mkdir()
    written(tmp_path, Gallery("three", {}), [image(number, tmp_path) for number in (3, 5, 4)])
    links = [Page(tmp_path / "images" / f"0000{stem}.html").links for stem in (5, 4, 3)]
    pages = [[link for link in each if re.fullmatch(r"\d+\.html", link)] for each in links]
    assert pages == [["00004.html"], ["00005.html", "00003.html"], ["00004.html"]]
    assert all(
        f"../index.html#0000{stem}" in each for stem, each in zip((5, 4, 3), links, strict=True)
    )


def test_without_labels_there_are_decisions_and_no_rates(tmp_path):
    (tmp_path / "images").mkdir()
    images = [image(number, tmp_path) for number in range(4)]
    page = written(tmp_path, Gallery("own images", {"": Threshold(1.0, "a calibration")}), images)
    assert {"above", "below", "threshold", "gallery", "histogram"} <= set(page.ids)
    assert not {"tp", "fp", "recall"} & set(page.ids)
    assert "Threshold 1.0000: a calibration" in page.text
    assert re.search(r"Anomalous\s*2\s*Normal\s*2", page.text)
    one = Page(tmp_path / "images" / "00001.html")
    assert "normal: score 1.0000, not above the threshold 1.0000 (a calibration)" in one.text


@pytest.mark.parametrize("label", ["unknown", "anomalous"])
def test_without_a_threshold_nothing_is_decided(tmp_path, label):
    (tmp_path / "images").mkdir()
    images = [image(number, tmp_path, label=label) for number in range(3)]
    page = written(tmp_path, Gallery("own images", {}), images)
    assert "no threshold was set: this is the highest score" in page.text
    assert "Nothing was decided" in page.text
    assert re.search(r"Above the threshold\D*0\s*Not above it\D*3", page.text)
    if label == "anomalous":
        assert re.search(r"Found \(TP\)\s*0\s*Missed \(FN\)\s*0\s", page.text)
    one = Page(tmp_path / "images" / "00002.html")
    assert "No threshold was set, so nothing is decided." in one.text


@given(
    st.lists(
        st.tuples(st.sampled_from(["normal", "anomalous", "unknown"]), st.integers(-3, 3)),
        min_size=1,
    ),
    st.sampled_from([-1.5, 0.0, 1.0, math.nextafter(1.0, 2.0)]),
)
def test_counts_and_rates_are_those_of_the_metrics(drawn, limit):
    images = [image(0, label=label, score=float(score)) for label, score in drawn]
    counted = Counter(verdict(each.label, each.score, Threshold(limit, "")) for each in images)
    labelled = [each for each in images if each.label != "unknown"]
    metrics = AtThreshold(limit)
    anomalous = np.array([each.label == "anomalous" for each in labelled], bool)
    metrics.add(np.array([each.score for each in labelled]), anomalous)
    expected = metrics.figures("image")
    found = {f"image_{name}": value for name, value in rates(counted).items()}
    assert found == pytest.approx(expected, nan_ok=True)


def test_the_script_gives_the_same_verdicts():
    script = (resources.files("spg_pipe.report") / "report.js").read_text("utf-8")
    for label in ("anomalous", "normal", "unknown"):
        below, above = VERDICTS[label, False], VERDICTS[label, True]
        assert f'{label}: ["{below}", "{above}"]' in script


def test_all_is_read_from_files_alone():
    """What `report.js` must not need: modules, requests, storage, code from text."""
    script = (resources.files("spg_pipe.report") / "report.js").read_text("utf-8")
    for word in ("import", "fetch", "XMLHttpRequest", "Storage", "eval", "innerHTML", "http:"):
        found = re.findall(rf"\b{word}\b.*", script)
        assert [line for line in found if "www.w3.org/2000/svg" not in line] == []


def metrics(protocol: str, **thresholds: float) -> MetricsTable:
    counts = RowCounts(*[0] * 9)
    row = MetricsRow("screw", "sort", {}, counts, 0.0, thresholds)
    context = RowContext("target", "test", "backbone", 1, "model", protocol)
    return MetricsTable(context, (row,), row)


SCORES = pd.DataFrame({"category": ["screw"] * 3 + ["nut"], "score": [1.0, 2.0, 4.0, 1.9]})


@pytest.mark.parametrize(
    ("protocol", "f1", "expected"),
    [
        ("exact", 2.0, 1.5),  # there the score of the threshold is anomalous
        ("spg", 2.0, 3.0),
        ("exact", 1.0, math.nextafter(1.0, 0.0)),
        ("exact", 4.0, 3.0),
    ],
)
def test_a_gallery_starts_between_the_scores_that_the_highest_f1_parts(protocol, f1, expected):
    found = direction.thresholds(metrics(protocol, image_f1_threshold=f1), SCORES)
    assert found["screw"].value == expected
    assert found["screw"].says == "F1-max, found on these images and their labels"


def test_a_gallery_starts_at_the_threshold_of_a_calibration():
    both = metrics("exact", image_f1_threshold=2.0, image_threshold=1.25)
    expected = {"screw": Threshold(1.25, "a calibration, given to evaluate")}
    assert direction.thresholds(both, SCORES) == expected
    none = metrics("exact", image_f1_threshold=math.nan, image_threshold=math.nan)
    assert direction.thresholds(none, SCORES) == {}


def test_neighbouring_scores_are_parted_too():
    values = [1.0, math.nextafter(1.0, 2.0)]
    scores = pd.DataFrame({"category": "screw", "score": values})
    found = direction.thresholds(metrics("exact", image_f1_threshold=values[1]), scores)
    assert values[0] <= found["screw"].value < values[1]


def test_of_very_many_images_evenly_spaced_ones_and_the_examples_are_shown(monkeypatch):
    table = pd.DataFrame({"category": ["b"] * 6 + ["a"] * 6, "score": [3, 1, 2, 6, 5, 4] * 2})
    order = [3, 4, 5, 0, 2, 1, 9, 10, 11, 6, 8, 7]
    assert direction.rows_shown(table, {1}) == order
    monkeypatch.setattr(direction, "MOST", 4)
    # By category, the highest score first: the first, two between, the last, and what is wanted.
    assert direction.rows_shown(table, {2}) == [3, 0, 2, 10, 7]


def test_pictures_are_small_and_keep_the_shape(tmp_path):
    tall = np.zeros((2000, 600, 3), np.uint16)
    pictures = write_pictures(
        tmp_path, "a", tall, flat(0.5, (2000, 600)), SHOWN, mask=np.ones((40, 12))
    )
    assert pictures == ImageFiles("a", (LONGEST, 144), photograph=True, mask=True)
    assert map_picture(flat(0.5, (2000, 600)), SHOWN).size == (48, MAP_LONGEST)
    gone = write_pictures(tmp_path, "b", None, flat(0.5), SHOWN, size=(300, 100))
    assert gone == ImageFiles("b", (300, 100), photograph=False)
    assert not (tmp_path / "b.jpg").exists()
    with pytest.raises(ValueError, match="nor its size"):
        write_pictures(tmp_path, "c", None, flat(0.5), SHOWN)


def test_a_map_has_one_scale_of_colours_whatever_its_range():
    values = np.array([[0.0, 0.25, 0.5, 0.75, 1.0]], np.float32)
    picture = map_picture(values, SHOWN)
    assert np.asarray(picture).tolist() == [[0, 0, 128, 255, 255]]
    assert picture.convert("RGB").getpixel((0, 0)) == (0, 0, 4)  # inferno's darkest


def test_the_smallest_defect_has_an_outline(tmp_path):
    from PIL import Image

    mask = np.zeros((4800, 4800), np.uint8)
    mask[1000:1003, 2000:2003] = 1
    write_pictures(tmp_path, "a", np.zeros((4800, 4800, 3), np.uint8), flat(0.5), SHOWN, mask=mask)
    with Image.open(tmp_path / "a-mask.png") as picture:
        alpha = np.asarray(picture.convert("RGBA"))[:, :, 3]
    rows, columns = np.nonzero(alpha)
    assert 0 < len(rows) < 40
    assert abs(rows.mean() - 50) < 2
    assert abs(columns.mean() - 100) < 2

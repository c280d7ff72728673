"""The page of `predict --report`: what it says, what it shows of many images, kills."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from predict.test_killed import Killed, death  # noqa: F401
from report.parsed import Page, linked_files
from tiny import TinyBackbone, files, photograph

from spg_pipe.decision.calibration import Limits, Threshold, by_hand
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.own_page import OwnPage
from spg_pipe.predict.finish import Finish, finish
from spg_pipe.predict.items import Reading, find_items
from spg_pipe.predict.judge import judge_items
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.run import ResultFolder, RunRecord, check_out, results_of
from spg_pipe.predict.shown import Shown, files_of, stem_of

UNDECIDED = by_hand(None, None)
SCRIPT = "<script>alert(1)<&script>.png"


def predict(
    detector: Detector,
    photos: Path,
    out: Path,
    limits: Limits = UNDECIDED,
    *,
    page: bool = True,
    most: int = 2000,
) -> int:
    """A run with or without the page, of at most so many images; how many images it judged."""
    shown = Shown(most)
    tables = ("scores.csv", *["report"] * page)
    record = RunRecord(identity={"by": limits.model_dump_json()}, tables=tables)
    check_out(out, tables)
    predictor, items = Predictor(detector, TinyBackbone()), find_items([str(photos)], out)
    with ResultFolder(out, record, shown if page else None) as folder:
        own = OwnPage(folder, shown, predictor.shown, lambda _: limits, ("Said.",))
        also = own.draw if page else None
        how = Finish(predictor, out, folder.plan, lambda _: limits, also=also)
        then = partial(finish, how=how)
        for entry in judge_items(predictor, items, Reading(), then, known=folder.known):
            folder.add(entry)
        folder.finish(page=own.write if page else None)
    return predictor.backbone.calls


@pytest.fixture
def photos(tmp_path) -> Path:
    """Four images in two groups, one with markup in its name, and a bad one."""
    for number, name in enumerate(("one/a.png", "one/b.png", f"two/{SCRIPT}", "two/c.png")):
        photograph(tmp_path / "photos" / name, (20, 24 + 5 * number))
    (tmp_path / "photos" / "two" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def limits(tiny_detector, photos, tmp_path) -> Limits:
    """A threshold between the scores of the images, and normal ones below it."""
    predict(tiny_detector, photos, tmp_path / "first", page=False)
    results = [result for result in results_of(tmp_path / "first") if hasattr(result, "score")]
    scores = sorted(result.score for result in results)
    middle = (scores[1] + scores[2]) / 2
    pixel = sorted(result.peak for result in results)[1]
    return Limits(
        image=Threshold(value=middle, says="Of a test."),
        pixel=Threshold(value=pixel, says=""),
        scores=(middle - 2, middle - 1),
        anomalous=0,
    )


def test_the_page_counts_what_was_decided_and_names_bad_files(
    tiny_detector, photos, limits, tmp_path
):
    out = tmp_path / "out"
    predict(tiny_detector, photos, out, limits)
    page = Page(out / "report" / "index.html")
    said = {"one": [0, 0, 0], "two": [0, 0, 0]}
    for result in results_of(out):
        kind = ["anomalous", "normal", None].index(getattr(result, "decision", None))
        said[result.group][kind] += 1
    assert sum(sum(of) for of in said.values()) == 5
    for group, (anomalous, normal, failed) in said.items():
        images = anomalous + normal + failed
        assert [group, *map(str, (images, anomalous, normal, failed))] in page.rows
    assert "two/bad.png: " in page.text
    assert SCRIPT in page.text
    assert "not the probability of a defect" in page.text
    assert "Nothing was decided" not in page.text
    shown = {path.resolve() for path in (out / "report").rglob("*") if path.is_file()}
    assert shown == linked_files(out / "report")


def test_the_page_of_an_image_says_what_its_line_says(tiny_detector, photos, limits, tmp_path):
    out = tmp_path / "out"
    predict(tiny_detector, photos, out, limits)
    with_regions = 0
    for result in results_of(out):
        path = out / "report" / "images" / f"{stem_of(result.path)}.html"
        if not hasattr(result, "score"):
            assert not path.exists()
            continue
        page = Page(path)
        assert f"{result.decision}: score" in page.text
        assert f"{result.score:.4f}".replace("-", "−") in page.text
        assert "(Of a test)." in page.text
        assert f"{result.p_value:.3g}: the share of the calibration's normal images" in page.text
        assert f"{result.peak:.3f} at row {result.peak_row}" in page.text
        with_regions += bool(result.regions)
        for region in result.regions:
            row = [str(region.number), *map(str, region.bbox), f"{region.area:,}"]
            assert any(cells[: len(row)] == row for cells in page.rows)
        mask = path.with_name(f"{stem_of(result.path)}-mask.png")
        assert mask.is_file() == bool(result.regions)
    assert 0 < with_regions < 4


def test_without_a_threshold_nothing_is_called_normal_or_anomalous(tiny_detector, photos, tmp_path):
    out = tmp_path / "out"
    predict(tiny_detector, photos, out)
    for path in (out / "report").rglob("*.html"):
        text = Page(path).text.replace("from normal images", "")
        assert "anomalous" not in text.lower()
        assert "normal" not in text
    text = Page(out / "report" / "index.html").text
    assert "Nothing was decided: there is no threshold" in text
    assert "not above" in text


def test_of_many_images_the_highest_scores_are_shown_and_all_are_counted(
    tiny_detector, photos, limits, tmp_path
):
    out = tmp_path / "out"
    predict(tiny_detector, photos, out, limits, most=2)
    results = [result for result in results_of(out) if hasattr(result, "score")]
    highest = sorted(results, key=lambda result: -result.score)[:2]
    pictures = {path.name for path in (out / "report" / "images").glob("*.jpg")}
    assert pictures == {f"{stem_of(result.path)}.jpg" for result in highest}
    page = Page(out / "report" / "index.html")
    assert "The 2 images with the highest scores have pictures and pages" in page.text
    assert "its counts have all, 2 more" in page.text
    decided = [result.decision for result in results]
    assert f"Anomalous{decided.count('anomalous')}" in page.text.replace("\n", "")
    assert f"Normal{decided.count('normal')}" in page.text.replace("\n", "")


def test_a_page_is_added_to_a_run_that_is_done_and_leaves_with_it(tiny_detector, photos, tmp_path):
    out = tmp_path / "out"
    predict(tiny_detector, photos, out, page=False)
    before = files(out)
    assert predict(tiny_detector, photos, out) == 4  # its pictures need the maps
    with_page = files(out)
    assert predict(tiny_detector, photos, out) == 0
    assert files(out) == with_page
    (out / "report" / "mine.txt").write_text("mine")
    assert predict(tiny_detector, photos, out, page=False) == 0
    assert files(out) == before | {"report/mine.txt": b"mine"}


def test_a_folder_of_that_name_that_no_run_made_is_left_alone(tiny_detector, photos, tmp_path):
    out = tmp_path / "out"
    predict(tiny_detector, photos, out, page=False)
    (out / "report").mkdir()
    (out / "report" / "index.html").write_text("mine")
    with pytest.raises(SpgError, match=r"report would be replaced, but is not part of a result"):
        predict(tiny_detector, photos, out)
    (photos / "one" / "a.png").unlink()
    predict(tiny_detector, photos, out, page=False)
    assert (out / "report" / "index.html").read_text() == "mine"


def test_no_link_in_the_page_s_folder_is_written_through(tiny_detector, photos, tmp_path):
    out = tmp_path / "out"
    predict(tiny_detector, photos, out)
    images = out / "report" / "images"
    images.rename(tmp_path / "elsewhere")
    images.symlink_to(tmp_path / "elsewhere")
    before = files(tmp_path / "elsewhere")
    with pytest.raises(SpgError, match=r"images is a link"):
        predict(tiny_detector, photos, out)
    assert files(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("most", [2, 2000])
def test_wherever_a_run_is_killed_the_next_one_makes_the_page_of_an_unbroken_one(
    tmp_path,
    photos,
    limits,
    tiny_detector,
    death,  # noqa: F811
    most,
):
    run = partial(predict, tiny_detector, limits=limits, most=most)
    first, unbroken = tmp_path / "earlier", tmp_path / "unbroken"
    run(photos, first)
    photograph(photos / "one" / "a.png", (40, 44))
    (photos / "two" / "c.png").unlink()
    run(photos, unbroken)
    expected, wrong = files(unbroken), []
    for point in range(0, 1000, 5):
        out = tmp_path / f"out-{point}"
        shutil.copytree(first, out)
        death.out, death.left, death.told = out, point, []
        with suppress(Killed):
            run(photos, out)
        finished, death.out = death.left >= 0, None
        run(photos, out)
        if (found := files(out)) != expected:
            names = [name for name in found | expected if found.get(name) != expected.get(name)]
            wrong.append((point, death.told[point : point + 1], names))
        shutil.rmtree(out)
        if finished:
            break
    assert not wrong
    assert finished
    assert point > 20


def test_the_highest_scores_are_kept_of_equal_ones_the_first():
    shown = Shown(2)
    gone = [shown.add(name, score) for name, score in (("a", 1.0), ("b", 3.0), ("c", 1.0))]
    assert gone == [None, None, "c"]
    assert not shown.wants(1.0)
    assert shown.wants(1.5)
    assert shown.add("d", 2.0) == "a"
    assert shown.names() == {"b", "d"}


def test_a_name_that_comes_twice_is_not_gone_while_one_of_it_is_shown():
    shown = Shown(2)
    shown.add("a", 1.0)
    shown.add("a", 2.0)
    assert shown.add("b", 3.0) is None
    assert shown.names() == {"a", "b"}
    assert len(files_of("a")) == 4

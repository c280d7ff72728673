"""The table of metrics for a terminal."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from rich.cells import cell_len

from spg_pipe.metrics import (
    MetricsTable,
    RowContext,
    accumulate,
    category_metrics,
    seeds_mean,
    with_mean,
)
from spg_pipe.recipe.params import PublishedFigure
from spg_pipe.report.tables import Table, overview_table, plain, text_table


def table_of(protocol: str = "exact", seed: int = 111, noise: float = 0.3) -> MetricsTable:
    """Two categories; the second has no normal image."""
    rng = np.random.default_rng(seed)
    context = RowContext("visa", "test", "vit@448", seed, "model", protocol, "spg", "mvtec")
    out = []
    for name, labels in (("candle", [0, 1, 1]), ("蝋燭", [1, 1, 1])):
        masks = [np.full((8, 8), 0, np.uint8) for _ in labels]
        for mask, label in zip(masks, labels, strict=True):
            mask[2:4, 2:4] = label
        maps = [(m * 0.5 + rng.uniform(0, noise, m.shape)).astype(np.float32) for m in masks]
        pixels = accumulate(lambda a=maps, b=masks: zip(a, b, strict=True), "sort", protocol)
        scores = np.array([m.max() for m in maps])
        out.append(category_metrics(name, np.array(labels), scores, pixels, protocol=protocol))
    return with_mean(context, out)


def only(category: int) -> MetricsTable:
    """The table of one of the categories."""
    table = table_of()
    return with_mean(table.context, [table.categories[category]])


def test_caption_names_everything_a_number_stands_on():
    caption = " ".join(text_table(table_of()).partition("\n\n")[0].split())
    assert caption == (
        "Target visa (test split); auxiliary mvtec; backbone vit@448; method protocol spg; metrics "
        "protocol exact; resolution model; accumulator sort; seed 111."
    )


def test_columns_and_undefined_cells():
    text = text_table(table_of())
    head = next(line for line in text.splitlines() if line.startswith("Category"))
    of_images, of_pixels = ("Image AUROC", "Image AP", "Image F1-max"), ("Pixel AUROC", "Pixel AP")
    expected = ["Category", *of_images, *of_pixels, "Pixel F1-max", "AUPRO@0.3"]
    assert re.split(" {2,}", head) == expected
    assert "nan" not in text
    one_class = next(line for line in text.splitlines() if line.startswith("蝋燭"))
    assert one_class.split()[1:4] == ["–", "–", "–"]


def test_columns_are_aligned():
    """Cells of a column end at the same place of the terminal, where 蝋 takes two."""
    figure = PublishedFigure(aux="mvtec", target="visa", image_auroc=80.2, source="a paper")
    table = seeds_mean([table_of(seed=seed, noise=0.9) for seed in (111, 112)])
    lines = text_table(table, figure).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Category"))
    rows = [line for line in lines[start:] if set(line) != {"─"}][:5]
    assert [row.split()[0] for row in rows[1:]] == ["candle", "蝋燭", "mean", "published"]
    ends = {
        tuple(cell_len(row[: found.end()]) for found in re.finditer(r"\S+( \S+)*", row))[1:]
        for row in rows
    }
    assert len(ends) == 1
    assert len(ends.pop()) == 7


def test_mean_says_over_how_many_categories():
    text = text_table(table_of())
    assert "mean over 1 to 2 categories" in text
    assert "Mean over 1 of 2 categories: Image AUROC, Image AP, Image F1-max." in text
    assert "mean over 1 category " in text_table(only(0))
    undefined = text_table(only(1))  # a mean of nothing has no part in the count
    assert "mean over 1 category " in undefined
    assert "0 to 1" not in undefined
    assert "Mean over 0" not in undefined


def test_what_pixel_metrics_left_out_stands_below_the_table():
    table = table_of()
    rows = [
        replace(row, counts=replace(row.counts, images_without_mask=1, vanished_regions=2))
        for row in table.categories
    ]
    text = " ".join(text_table(with_mean(table.context, rows)).split())
    assert "Left out of pixel metrics, having no mask: 2 of 5 anomalous images." in text
    assert "Vanished when masks were resized, and so in no metric: 4 regions." in text
    assert "Left out" not in text_table(table_of())
    assert "Vanished" not in text_table(table_of())


def test_several_seeds_show_mean_and_deviation():
    tables = [table_of(seed=seed, noise=0.9) for seed in (111, 112, 113)]
    text = text_table(seeds_mean(tables))
    values = [table.mean.metrics["pixel_auroc"] for table in tables]
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in text
    assert "seeds 111, 112, 113: mean ± sample standard deviation" in " ".join(text.split())


def test_published_figures_may_be_shares_or_per_cent_and_have_a_line_and_a_source():
    figure = PublishedFigure(
        aux="mvtec", target="visa", image_auroc=80.2, pixel_auroc=0.96, source="a paper"
    )
    lines = text_table(table_of(), figure).splitlines()
    line = next(line for line in lines if line.startswith("published"))
    assert line.split() == ["published", "0.802", "–", "–", "0.960", "–", "–", "–"]
    assert "Published: a paper." in lines


def test_overview_has_a_line_a_direction():
    figure = PublishedFigure(aux="mvtec", target="visa", image_auroc=80.2, source="a paper")
    table = overview_table([(table_of("spg"), figure), (table_of("spg"), None)])
    assert table.columns == (
        *("Auxiliary → target", "Categories", "Seed(s)", "Image AUROC", "published"),
        *("Pixel AUROC", "published", "PRO (fast)"),
    )
    assert [row[4] for row in table.rows] == ["0.802", "–"]
    assert "metrics protocol spg" in table.caption
    assert "PRO (fast)" in text_table(table_of("spg"))
    assert "AUPRO" not in text_table(table_of("spg"))


def test_a_line_end_in_a_name_makes_no_further_row():
    shown = plain(Table("Caption", ("Category",), (("bolt\nnut 1.000",), ("screw",))))
    assert r"bolt\nnut 1.000" in shown
    assert len(shown.splitlines()) == 6

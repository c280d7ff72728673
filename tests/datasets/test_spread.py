"""A few images of many, spread over categories and labels (`Manifest.spread`)."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import manifest_of, write_folder

from spg_pipe.datasets.manifest import Manifest, _spread_rows

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(SIZES, st.data())
def test_each_category_and_label_keeps_its_share_and_at_least_one_image(sizes, data):
    groups = [(str(name), 0) for name, size in enumerate(sizes) for _ in range(size)]
    limit = data.draw(st.integers(1, len(groups)))
    rows = _spread_rows(groups, limit)
    assert len(set(rows)) == limit
    assert rows == sorted(rows)
    found = Counter(groups[row] for row in rows)
    if limit < len(sizes):
        assert set(found.values()) == {1}
        return
    for name, size in enumerate(sizes):
        share = found[str(name), 0]
        # Every group has one; what is left beyond that is dealt out by size.
        assert 1 <= share <= size
        assert share <= max(1, limit * size / len(groups) + 1)


def test_a_rare_label_is_not_lost() -> None:
    groups = [("part", 0)] * 997 + [("part", 1)] * 3
    rows = _spread_rows(groups, 10)
    assert len(rows) == 10
    assert rows[-1] >= 997


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """16 images: four good ones and four defects of each of two categories."""
    return manifest_of(write_folder(tmp_path / "parts"))


def test_a_part_says_what_it_is_and_is_saved_so(manifest: Manifest, tmp_path: Path) -> None:
    part = manifest.spread(4)
    labels = zip(part.table["category"], part.table["label"], strict=True)
    assert list(labels) == [("bolt", 0), ("bolt", 1), ("nut", 0), ("nut", 1)]
    assert part.notes[-1] == "4 of 16 images (--limit)"
    assert part.selection == {"limit": 4, "of": 16}
    assert part.fingerprint() != manifest.fingerprint()
    part.save(tmp_path / "m.parquet")
    assert Manifest.load(tmp_path / "m.parquet", part.root).selection == part.selection


def test_a_limit_that_leaves_nothing_out_changes_nothing(manifest: Manifest) -> None:
    assert manifest.spread(16) is manifest

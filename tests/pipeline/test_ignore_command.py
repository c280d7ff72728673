"""`score --ignore`: places of their own, fewer pixels in metrics, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from layouts import save, write_mvtec

from pipeline.test_parts import RECIPE, command
from spg_pipe.cli.options import Options
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import DamagedError
from spg_pipe.pipeline import features, targets, training


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scores of a target without masks; the working folder holds all that made them."""
    monkeypatch.chdir(tmp_path)
    write_mvtec(Path("left"))
    write_mvtec(Path("right"), seed=1)
    Path("params.yaml").write_text(yaml.safe_dump(RECIPE))
    run = Options(device="cpu", quiet=True).run()
    for name in ("left", "right"):
        features.extract(run, run.params.dataset(name))
    training.train_sae(run, "left", 111)
    training.train_guides(run, "left", 111)
    return targets.score(run, "right")[0]


def test_scores_with_masks_lie_elsewhere_and_are_judged_without_their_pixels(scored, capsys):
    table = Scores.load(scored).table
    for category in table["category"].unique():
        shape = table[table["category"] == category][["height", "width"]].iloc[0]
        mask = np.zeros(tuple(shape), np.uint8)
        mask[: len(mask) // 2] = 255
        save(mask, Path("masks") / f"{category}.png")
    arguments = ("--split", "right", "--ignore", "masks")
    code, _, err = command(capsys, "score", *arguments)
    assert code == 0, err
    assert "Judge them with `spg-pipe evaluate --split right --scores" in err
    (place,) = map(Path, json.loads(command(capsys, "score", *arguments, "--json")[1])["scores"])
    assert place != scored
    found, before = Scores.load(place), Scores.load(scored)
    assert found.record.fingerprint != before.record.fingerprint
    assert not np.allclose(found.table["score"], before.table["score"])
    half = found.record.image_size // 2
    assert (found.maps(np.arange(3))[:, :half] == 0).all()
    run = Options(device="cpu", quiet=True).run()
    pixels = [
        targets.read_metrics(targets.evaluate(run, "right", scores=each)[0]).mean.counts.pixels
        for each in (scored, place)
    ]
    assert pixels[0] == 2 * pixels[1]
    arrays = zarr.open_group(place / "maps.zarr")
    for number in (-1, 99):
        arrays["kept_of"][0] = number
        with pytest.raises(DamagedError, match="not each of its images has one of the"):
            replace(found).maps(np.arange(3))


def test_a_mask_that_fits_no_image_and_banks_are_refused(scored, capsys):
    before = sorted(Path("artifacts").rglob("*"))
    save(np.zeros((3, 90), np.uint8), Path("wrong.png"))
    code, _, err = command(capsys, "score", "--split", "right", "--ignore", "wrong.png")
    assert code == 1
    assert "The mask wrong.png has 90×3 pixels and " in err
    code, _, err = command(capsys, "score", "--split", "right", "--ignore", "gone")
    assert code == 1
    assert "gone does not exist" in err
    options = ("--split", "right", "--ignore", "wrong.png", "--normals", "right/train")
    code, _, err = command(capsys, "score", *options)
    assert code == 1
    assert "--ignore and --normals do not go together in score" in err
    assert sorted(Path("artifacts").rglob("*")) == before

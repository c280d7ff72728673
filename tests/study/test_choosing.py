"""Settings are chosen on held-out parts of the auxiliary set, and on nothing else."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from layouts import write_mvtec
from pipeline.test_parts import RECIPE
from tiny import extracted, manifest_of, write_folder

from spg_pipe import pipeline, study
from spg_pipe.errors import SpgError, UnsuitableError
from spg_pipe.guides.contrast import class_sums
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import BankParams, DecisionParams, MapWeights, parse_params
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study import choosing, choosing_banks
from spg_pipe.study.choosing import (
    TOLERANCE,
    Candidate,
    Judgement,
    PartResult,
    best,
    held_out_parts,
    judge_candidates,
)
from spg_pipe.study.choosing_banks import judge_banks


def judged(*merits: float) -> list[Judgement]:
    return [Judgement((PartResult("x", math.nan, merit, merit),)) for merit in merits]


def test_the_first_is_kept_unless_another_is_clearly_better() -> None:
    assert best(judged(0.8, 0.8 + TOLERANCE / 2, 0.7)) == 0
    assert best(judged(0.8, 0.8 + 2 * TOLERANCE, 0.7)) == 1
    assert best(judged(0.7, 0.9, 0.9 + TOLERANCE / 2)) == 1


def test_merit_is_the_mean_of_what_is_defined() -> None:
    parts = (PartResult("a", 0.6, 0.9, 0.3), PartResult("b", math.nan, 0.7, 0.1))
    assert Judgement(parts).merit == pytest.approx((0.6 + 0.8 + 0.2) / 3)
    assert Judgement(parts[1:]).merit == pytest.approx((0.7 + 0.1) / 2)


def test_parts_are_categories_where_there_are_several(tiny_store: FeatureStore) -> None:
    parts = held_out_parts(tiny_store, class_sums(tiny_store))
    assert list(parts) == ["bolt", "nut"]
    assert (parts["bolt"] ^ parts["nut"]).all()


def test_one_category_is_parted_by_folds_or_kinds(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", ("bolt",), masked=6, missing=0)
    store = extracted(manifest_of(folder), tmp_path / "one.zarr")
    labels = store.array("label")
    parts = held_out_parts(store, class_sums(store))
    assert [name.split()[0] for name in parts] == ["fold"] * 5
    held = np.stack(list(parts.values()))
    assert (held.sum(axis=0) == 1).all()  # every image, defective or not, once
    assert all((labels[rows] == 1).any() for rows in parts.values())


def test_an_image_does_not_see_itself(
    tiny_store: FeatureStore, tiny_sae: SaeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part `bolt` is judged by guides, scales and weights without any image of `bolt`."""
    true, given = choosing.direction, []

    def direction(sums: object, layer: str, view: str, chosen: np.ndarray) -> torch.Tensor | None:
        given.append(chosen.copy())
        return true(sums, layer, view, chosen)

    fitted: list[np.ndarray] = []
    fit = choosing.fit_seen

    def fit_seen(*arguments: object, among: np.ndarray, **options: int) -> object:
        fitted.append(among.copy())
        return fit(*arguments, among=among, **options)

    monkeypatch.setattr(choosing, "direction", direction)
    monkeypatch.setattr(choosing, "fit_seen", fit_seen)
    judge_candidates(tiny_store, [Candidate(tiny_sae, 4, DecisionParams())])
    bolt = tiny_store.table["category"].to_numpy() == "bolt"
    assert {rows.tobytes() for rows in given} == {bolt.tobytes(), (~bolt).tobytes()}
    assert [rows.tobytes() for rows in fitted] == [(~bolt).tobytes(), bolt.tobytes()]


def test_candidates_are_judged_as_they_would_be_alone(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    none = DecisionParams(map=MapWeights(dissimilarity=0))
    candidates = [
        Candidate(tiny_sae, atoms, decision)
        for atoms in (2, 6)
        for decision in (DecisionParams(), none)
    ]
    together = judge_candidates(tiny_store, candidates)
    for candidate, found in zip(candidates, together, strict=True):
        (alone,) = judge_candidates(tiny_store, [candidate])
        for part, other in zip(found.parts, alone.parts, strict=True):
            assert part.part == other.part
            for metric in ("image_auroc", "pixel_auroc", "pixel_ap"):
                assert getattr(part, metric) == pytest.approx(getattr(other, metric), abs=1e-6)
    assert len({judgement.merit for judgement in together}) > 1


def test_too_few_images_to_hold_some_out_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", ("bolt",), masked=1, missing=0)
    store = extracted(manifest_of(folder), tmp_path / "one.zarr")
    with pytest.raises(SpgError, match="too few to hold some out"):
        held_out_parts(store, class_sums(store))


def run_of(choose: dict[str, list[object]], **changes: object) -> RecipeRun:
    recipe = RECIPE | {"choose": choose, "seeds": [1, 2]} | changes
    return RecipeRun(parse_params(recipe, "test"), Console(0), "cpu")


def test_the_choice_is_a_recipe_for_its_auxiliary_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(tmp_path / "left")
    run = run_of({"sae.k": [4, 2], "guides.atoms": [3], "decision.top_share": [0.05, 0.5]})
    pipeline.extract(run, run.params.dataset("left"))
    choice = study.choose(run, "left")
    means = {
        (row["sae.k"], row["decision.top_share"]): row["merit"]
        for row in choice.rows
        if row["part"] == "mean"
    }
    assert len(means) == 4
    # Dictionaries are described where they are among the choices, of two seeds also how alike.
    for row in choice.rows:
        assert ("stability" in row) == (row["part"] == "mean")
    assert {"R²", "Dead", "Stability"} <= set(choice.table.split())
    taken = choice.values["sae.k"], choice.values["decision.top_share"]
    assert means[taken] >= max(means.values()) - TOLERANCE
    written = parse_params(yaml.safe_load(choice.path.read_text()), "chosen")
    assert written.sae.k == choice.values["sae.k"]
    assert written.guides.atoms == 3
    assert written.decision.top_share == choice.values["decision.top_share"]
    assert (written.auxiliaries, written.choose) == (("left",), {})
    again = study.choose(run, "left")  # its SAEs are found, not trained anew
    assert again.rows == choice.rows


@pytest.mark.parametrize(
    ("choose", "changes", "message"),
    [
        ({}, {}, "no `choose:` section"),
        (
            {"score.rule": ["published"]},
            {},
            "score.rule: expected one of sae, guides, decision",
        ),
        ({"decision.mop.guides": [1]}, {}, "mop is no section"),
        ({"guides.atoms": [0]}, {}, "guides.atoms"),
        ({"guides.atoms": [4]}, {"score": {"rule": "published"}}, "spg-pipe sweep"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(
    choose: dict[str, list[object]], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SpgError, match=message):
        study.choose(run_of(choose, **changes), "left")


def test_a_banks_normals_are_not_judged_and_its_settings_are_judged_as_alone(
    tiny_store: FeatureStore, tiny_sae: SaeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[set[int]] = []
    judged: list[set[int]] = []
    made = choosing_banks.MemoryBank.of_store

    def of_store(store: FeatureStore, rows: np.ndarray, *given: Any, **options: Any) -> Any:
        drawn.append(set(rows.tolist()))
        return made(store, rows, *given, **options)

    images = choosing_banks.judge_images

    def judge_images(labelled: Any, rows: np.ndarray, total: np.ndarray) -> float:
        judged.append(set(np.flatnonzero(rows).tolist()))
        return images(labelled, rows, total)

    monkeypatch.setattr(choosing_banks.MemoryBank, "of_store", of_store)
    monkeypatch.setattr(choosing_banks, "judge_images", judge_images)
    one = Candidate(tiny_sae, 6, DecisionParams())
    banks = [
        BankParams(neighbours=n, weight=w, top_share=t)
        for n in (1, 2)
        for w in (0.5, 4.0)
        for t in (0.01, 0.3)
    ]
    options: dict[str, Any] = {"normals": 2, "seed": 5}
    together = judge_banks(tiny_store, one, banks, **options)
    labels = tiny_store.array("label")
    assert len(drawn) == 4  # two categories, two numbers of neighbours
    for part, own in (("bolt", set(range(8))), ("nut", set(range(8, 16)))):
        bank = next(rows for rows in drawn if rows <= own)
        assert (labels[list(bank)] == 0).all(), part
        assert own - bank in judged
    assert all(rows <= set(range(8)) or rows <= set(range(8, 16)) for rows in judged)
    for params, found in zip(banks, together, strict=True):
        (alone,) = judge_banks(tiny_store, one, [params], **options)
        assert alone == found
    assert len({judgement.merit for judgement in together}) > 2


def test_a_bank_without_weight_is_the_zero_shot_decision_on_the_same_images(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    """The guides' part of a fused score is made without the part, as in `judge_candidates`."""
    one = Candidate(tiny_sae, 6, DecisionParams())
    (none,) = judge_banks(tiny_store, one, [BankParams(weight=0)], normals=2, seed=5)
    shared = choosing.look_at_parts(tiny_store, [one], "cpu")
    assert [part.part for part in none.parts] == ["bolt", "nut"]
    for found in none.parts:
        (own,) = shared.categories(found.part)
        ((rows, drawn),) = choosing_banks._targets(tiny_store, shared, found.part, 2, 5)
        assert sorted([*np.flatnonzero(rows), *drawn]) == np.flatnonzero(own).tolist()
        # The zero-shot way, on the same images, without what is made for banks.
        decision, which = shared.decide(one, found.part)
        odds = partial(choosing.grids_of, decision, shared.seen, which)
        pixels = choosing.judge_pixels(shared, rows, odds)
        values = choosing.image_values(decision, shared.seen, which, 32, rows)
        total = np.sum(list(decision.shares(values).values()), axis=0)
        image = choosing.judge_images(shared.images, rows, total)
        expected = (image, *pixels)
        assert (found.image_auroc, found.pixel_auroc, found.pixel_ap) == pytest.approx(expected)
    (some,) = judge_banks(tiny_store, one, [BankParams(weight=4)], normals=2, seed=5)
    assert some != none


def test_a_copy_is_drawn_for_no_bank(
    tiny_store: FeatureStore, tiny_sae: SaeRun, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "parts", missing=0)
    for category in ("bolt", "nut"):
        for number in range(4):
            good = folder / category / "good"
            shutil.copy(good / "00.png", good / f"copy{number}.png")
    store = extracted(manifest_of(folder), tmp_path / "x.zarr")
    shared = choosing.look_at_parts(store, [Candidate(tiny_sae, 6, DecisionParams())], "cpu")
    for seed in range(4):
        for part in ("bolt", "nut"):
            ((_, drawn),) = choosing_banks._targets(store, shared, part, 4, seed)
            assert [Path(store.table["path"][row]).stem[:2] for row in drawn] in (
                ["00", "01", "02", "03"],
                ["01", "02", "03", "co"],
            )
        assert not list(choosing_banks._targets(store, shared, "bolt", 5, seed))


def test_too_few_normal_images_for_a_bank_are_refused(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    one = Candidate(tiny_sae, 6, DecisionParams())
    with pytest.raises(UnsuitableError, match=r"more than 4 normal images.*fewer --normals"):
        judge_banks(tiny_store, one, [BankParams()], normals=4, seed=0)


def test_settings_of_a_bank_are_chosen_after_the_others_and_written_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(Path("left"), good=4)
    run = run_of({"guides.atoms": [2, 4], "bank.weight": [1.0, 0.0]})
    pipeline.extract(run, run.params.dataset("left"))
    choice = study.choose(run, "left", normals=2)
    assert list(choice.values) == ["guides.atoms", "bank.weight"]
    recipe = parse_params(yaml.safe_load(choice.path.read_text()), "chosen")
    assert recipe.guides.atoms == choice.values["guides.atoms"]
    assert recipe.bank.weight == choice.values["bank.weight"]
    sees = {row["sees"]: "bank.weight" in row for row in choice.rows}
    few_shot = "labelled auxiliary set; few-shot: 2 normal images of the target"
    assert sees == {"labelled auxiliary set": False, few_shot: True}
    assert few_shot in " ".join(choice.table.split())


def test_too_few_normal_images_leave_the_bank_as_it_is_and_choose_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(Path("left"))
    run = run_of({"guides.atoms": [2, 4], "bank.weight": [1.0, 0.0]})
    run = replace(run, console=Console(1))
    pipeline.extract(run, run.params.dataset("left"))
    choice = study.choose(run, "left")
    assert list(choice.values) == ["guides.atoms"]
    assert "Nothing of bank is chosen on left: No part of" in capsys.readouterr().err
    with pytest.raises(SpgError, match="more than 4 normal images"):
        study.choose(run_of({"bank.weight": [1.0, 0.0]}), "left")


def test_what_is_not_too_few_images_stops_a_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(Path("left"), good=4)
    run = run_of({"guides.atoms": [2, 4], "bank.neighbours": [1, 1000]})
    pipeline.extract(run, run.params.dataset("left"))
    with pytest.raises(SpgError, match=r"Lower bank\.neighbours"):
        study.choose(run, "left", normals=2)
    assert not list(Path("artifacts").glob("choices/**/*.*"))

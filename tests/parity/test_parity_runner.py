"""The parity runner itself: it copes with other cases, and it notices a changed constant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parity_table import main as print_table

from parity import guide_case, sae_case, variants
from parity.cases import KINDS, OWN_CASES, cases, oracle_folder, uncompared
from parity.mutants import MUTANTS

COMPARE = {"sae": sae_case.compare_case, "guide": guide_case.compare_case}
VARIANTS = {
    "lean sae": ("sae", variants.lean_sae),
    "lean guide": ("guide", variants.lean_guide),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_cases_with_fewer_arrays_are_compared_in_full(name: str, tmp_path: Path) -> None:
    kind, make = VARIANTS[name]
    case = variants.write_case(tmp_path, kind, make())
    comparisons = COMPARE[kind](case)
    assert [c for c in comparisons if not c.ok] == []
    assert uncompared(case, comparisons) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_a_wrong_number_in_any_result_is_noticed(name: str, tmp_path: Path) -> None:
    kind, make = VARIANTS[name]
    arrays, scalars = make()
    for result in sorted(set(arrays) - variants.INPUTS[kind]):
        wrong = arrays[result].copy()
        if wrong.dtype == bool:
            wrong.flat[0] = not wrong.flat[0]
        else:
            wrong.flat[0] = wrong.flat[0] + np.asarray(1e-3 * max(1, abs(wrong).max()) + 1).astype(
                wrong.dtype
            )
        case = variants.write_case(tmp_path / result, kind, (arrays | {result: wrong}, scalars))
        bad = [c.array for c in COMPARE[kind](case) if not c.ok]
        assert bad == [result]


def test_one_batch_repeated_and_batches_a_step_are_told_apart(tmp_path: Path) -> None:
    arrays, scalars = variants.tiny("sae")
    split = variants.write_case(tmp_path / "rows", "sae", (arrays, scalars))
    axis = arrays | {"train_x": arrays["train_x"].reshape(5, 2, 16, 32)}
    stacked = variants.write_case(tmp_path / "axis", "sae", (axis, scalars))
    repeated = variants.write_case(
        tmp_path / "one", "sae", (arrays | {"train_x": arrays["train_x"][:2]}, scalars)
    )
    for one, other in zip(sae_case.batches(split), sae_case.batches(stacked), strict=True):
        assert one.equal(other)
    first = sae_case.batches(split)[0]
    assert [batch.equal(first) for batch in sae_case.batches(repeated)] == [True] * 5


def test_the_table_takes_relative_and_absolute_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants.write_case(tmp_path / "cases", "sae", variants.lean_sae())
    monkeypatch.chdir(tmp_path)
    for folder in ("cases", str(tmp_path / "cases")):
        assert print_table(["parity_table.py", folder]) == 0
        assert "1 cases, 0 failures, 0 results not compared" in capsys.readouterr().out
        monkeypatch.setenv("SPG_ORACLE", folder)
        assert (oracle_folder() / "README.json").is_file()


def test_the_table_fails_on_a_wrong_number_and_on_a_folder_without_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, scalars = variants.lean_sae()
    wrong = (arrays | {"grad_W": arrays["grad_W"] + np.float32(1e-4)}, scalars)
    variants.write_case(tmp_path / "cases", "sae", wrong)
    assert print_table(["parity_table.py", str(tmp_path / "cases")]) == 1
    assert "1 failures" in capsys.readouterr().out
    assert print_table(["parity_table.py", str(tmp_path)]) == 1
    assert "no README.json" in capsys.readouterr().out


def test_every_changed_constant_of_the_code_turns_parity_red() -> None:
    script = Path(__file__).with_name("mutants.py")
    environment = {k: v for k, v in os.environ.items() if k != "SPG_ORACLE"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name}: caught" for name in MUTANTS]


def test_the_project_has_its_own_copy_of_every_kind() -> None:
    assert {case.kind for case in cases(folder=OWN_CASES)} == set(KINDS)

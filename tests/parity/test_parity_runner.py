"""The parity runner itself: it copes with other cases, and it notices a changed constant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parity_table import compare_kind
from parity_table import main as print_table

from parity.cases import KINDS, OWN_CASES, Case, cases, oracle_folder, uncompared
from parity.mutants import MUTANTS

LAST_STEP_ONLY = {
    "sae": ("train_W", "train_D", "train_stats"),
    "guide": ("adam_codes", "ema_codes"),
}
ABSENT = {
    "sae": ("z", "pre", "topk_idx", "topk_val_raw", "auxk_idx", "auxk_val", "recon_error"),
    "guide": ("score_map", "codes_eff", "sim", "local_prob", "anomaly_map_gauss_batchquirk"),
}


def lean(kind: str, folder: Path, **wrong: np.ndarray) -> Case:
    """The tiny case without intermediate arrays and with the last training step only."""
    (case,) = cases(kind, OWN_CASES)
    entry = json.loads((OWN_CASES / "README.json").read_text())["files"][case.name]
    arrays = {name: case.array(name) for name in case.arrays if name not in ABSENT[kind]}
    for name in LAST_STEP_ONLY[kind]:
        arrays[f"{name}_last"] = arrays.pop(name)[-1]
        entry["arrays"][f"{name}_last"] = entry["arrays"].pop(name)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / entry["file"], **(arrays | wrong))
    (folder / "README.json").write_text(json.dumps({"files": {case.name: entry}}))
    return cases(kind, folder)[0]


@pytest.mark.parametrize("kind", ABSENT)
def test_a_lean_case_is_compared_in_full_and_a_wrong_number_in_any_result_is_noticed(
    kind: str, tmp_path: Path
) -> None:
    case = lean(kind, tmp_path)
    comparisons = compare_kind(case)
    assert [c for c in comparisons if not c.ok] == []
    assert uncompared(case, comparisons) == []
    for result in [name for name in case.outputs() if case.has(name)]:
        wrong = case.array(result).copy()
        if wrong.dtype == bool:
            wrong.flat[0] = not wrong.flat[0]
        else:
            wrong.flat[0] += np.asarray(1e-3 * max(1, abs(wrong).max()) + 1).astype(wrong.dtype)
        changed = lean(kind, tmp_path / result, **{result: wrong})
        assert [c.array for c in compare_kind(changed) if not c.ok] == [result]


def test_the_table_takes_relative_and_absolute_folders_and_fails_on_a_wrong_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = lean("sae", tmp_path / "cases")
    monkeypatch.chdir(tmp_path)
    for folder in ("cases", str(tmp_path / "cases")):
        assert print_table(["parity_table.py", folder]) == 0
        assert "1 cases, 0 failures, 0 results not compared" in capsys.readouterr().out
        monkeypatch.setenv("SPG_ORACLE", folder)
        assert (oracle_folder() / "README.json").is_file()
    lean("sae", tmp_path / "wrong", grad_W=case.array("grad_W") + np.float32(1e-4))
    for folder, message in (("wrong", "1 failures"), (".", "no README.json")):
        assert print_table(["parity_table.py", folder]) == 1
        assert message in capsys.readouterr().out


@pytest.mark.slow
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

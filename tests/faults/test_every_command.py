"""Whatever breaks in the middle of a command: one message, nothing half-written, and the same
command given again makes the very bytes of an undisturbed run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from e2e.helpers import must, spg
from layouts import write_mvtec, write_visa
from pipeline.test_checked import RECIPE
from tiny import files

from faults.injected import FAULTS, watched

pytestmark = pytest.mark.slow
CHAIN = ("prepare", "extract", "train-sae", "train-guides", "score", "evaluate", "report")
COMMANDS = (*CHAIN, "predict", "explain")


class Undisturbed(NamedTuple):
    """A command that nothing disturbs."""

    before: Path
    """A folder as it is before."""
    after: dict[str, bytes]
    """What the folder holds afterwards."""
    deeds: dict[str, list[str]]
    """Fault → what the command does that can meet it."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    base = tmp_path_factory.mktemp("states")
    folder = base / "now"
    write_mvtec(folder / "left")
    write_visa(folder / "right", seed=1)
    (folder / "params.yaml").write_text(json.dumps(RECIPE))
    found = {}
    for command in COMMANDS:
        before = shutil.copytree(folder, base / command)
        must(spg(*words_of(command), cwd=folder))  # imports, too, which look into folders
        again = shutil.copytree(before, base / "again" / command)
        with watched(again) as deeds:
            must(spg(*words_of(command), cwd=again))
        found[command] = Undisturbed(before, held(again), deeds)
    return found


def words_of(command: str) -> tuple[str, ...]:
    """A command of the recipe, or of its detector and images of one's own."""
    if command in CHAIN:
        return (command, "--workers", "1") if command == "extract" else (command,)
    detector = "artifacts/detectors/mini/left-efficientnet-lite0-64-s111"
    image = ["left/bottle/test/good", "left/bottle/test/good/000.png"][command == "explain"]
    return (command, detector, image)


def held(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if ".lock" not in name}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_fault_is_one_message_and_the_command_again_makes_the_same_bytes(
    undisturbed: dict[str, Undisturbed], tmp_path: Path, command: str, fault: str
) -> None:
    """At another moment for each fault, spread over all that the command does."""
    (start, expected, usual), folder = undisturbed[command], tmp_path / "folder"
    moment = round((len(usual[fault]) - 1) * list(FAULTS).index(fault) / (len(FAULTS) - 1))
    shutil.copytree(start, folder)
    before = held(folder)
    with watched(folder, (fault, moment)) as deeds:
        done = spg(*words_of(command), cwd=folder)
    at = f"{deeds[fault][moment]}: {done}"
    assert "Traceback" not in done.stderr, at
    code, said = (143, "Ended by SIGTERM.") if fault == "SIGTERM" else (1, "Error: ")
    assert done.returncode in (code, 0), at  # 0: something else was tried
    assert done.stderr.count(said) == bool(done.returncode), at
    left = held(folder)
    assert not [name for name in left if name.endswith((".tmp", ".old"))], at
    if done.returncode == 0:
        assert left == expected, at
    assert {name for name in before if left.get(name) != before[name]} == set(), at
    must(spg(*words_of(command), cwd=folder))
    assert held(folder) == expected, at

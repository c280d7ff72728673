"""Whatever breaks in the middle of a command: one message, nothing half-written, and the same
command given again makes the very bytes of an undisturbed run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from e2e.helpers import must, spg
from layouts import write_mvtec, write_visa
from pipeline.test_checked import RECIPE
from tiny import files

from faults.injected import FAULTS, watched

pytestmark = pytest.mark.slow
CHAIN = ("prepare", "extract", "train-sae", "train-guides", "score", "evaluate", "report")
COMMANDS = (*CHAIN, "predict", "explain")


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Command → a folder as it is before that command; "" → as it is after all of them."""
    base = tmp_path_factory.mktemp("states")
    folder = base / "now"
    write_mvtec(folder / "left")
    write_visa(folder / "right", seed=1)
    (folder / "params.yaml").write_text(json.dumps(RECIPE))
    found = {}
    for command in COMMANDS:
        found[command] = shutil.copytree(folder, base / command)
        must(spg(*words_of(command), cwd=folder))
    return found | {"": folder}


def words_of(command: str) -> tuple[str, ...]:
    """A command of the recipe, or of its detector and images of one's own."""
    if command in CHAIN:
        return (command, "--workers", "1") if command == "extract" else (command,)
    detector = "artifacts/detectors/mini/left-efficientnet-lite0-64-s111"
    image = ["left/bottle/test/good", "left/bottle/test/good/000.png"][command == "explain"]
    return (command, detector, image)


def held(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if ".lock" not in name}


@pytest.fixture(scope="module", params=COMMANDS)
def undisturbed(
    request: pytest.FixtureRequest,
    states: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, dict[str, bytes]]:
    """A command, and what its folder holds afterwards."""
    folder = shutil.copytree(states[request.param], tmp_path_factory.mktemp("whole") / "folder")
    must(spg(*words_of(request.param), cwd=folder))
    return request.param, held(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_message_and_the_command_again_makes_the_same_bytes(
    states: dict[str, Path], undisturbed: tuple[str, dict[str, bytes]], tmp_path: Path, fault: str
) -> None:
    """At another moment for each fault, spread over all that the command does."""
    (command, expected), folder = undisturbed, tmp_path / "folder"
    shutil.copytree(states[command], folder)
    before = held(folder)
    with watched(folder, fault) as deeds:
        must(spg(*words_of(command), cwd=folder))
    moment = round((len(deeds) - 1) * list(FAULTS).index(fault) / (len(FAULTS) - 1))
    shutil.rmtree(folder)
    shutil.copytree(states[command], folder)
    with watched(folder, fault, moment) as deeds:
        done = spg(*words_of(command), cwd=folder)
    at = f"{deeds[moment]}: {done}"
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

"""The code's structure is part of its specification (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "spg_pipe"
TESTS = ROOT / "tests"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path
    for folder in ("spg_pipe", "stages", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)

ORDER = (ROOT / "docs" / "architecture.md").read_text().partition("## Imports go one way")[2]
FLOORS = {
    room: int(floor)
    for floor, rooms in re.findall(r"^ *(\d+)  ([a-z, ]+)$", ORDER, flags=re.MULTILINE)
    for room in rooms.split(", ")
}
"""Room → its floor, as docs/architecture.md says; `errors` is below them all."""


def room_of(path: Path) -> str:
    """`spg_pipe/store/reader.py` → store; `spg_pipe/cli/main.py` → cli."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def lines_of(path: Path) -> list[str]:
    """The lines of a source file."""
    return path.read_text().splitlines()


def functions_of(path: Path) -> list[ast.FunctionDef]:
    """Every function and method of a file, inner ones too."""
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = str(node.module)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def own_rooms(path: Path) -> set[str]:
    """The rooms of this package that a file imports."""
    dotted = {tuple(name.split(".")) for name in imported(path)}
    return {name[1] for name in dotted if name[0] == "spg_pipe" and name[1:2] and name[1] in FLOORS}


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert rooms == set(FLOORS)
    assert max(FLOORS.values()) <= 14


def test_nothing_lies_loose_at_the_root() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "errors.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":  # re-exports lazily
        return
    wrong = {other for other in own_rooms(path) - {room} if FLOORS[other] >= FLOORS.get(room, 0)}
    assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_metrics_can_be_used_alone() -> None:
    allowed = {"numpy", "scipy", "sklearn", "spg_pipe"}
    for path in (PACKAGE / "metrics").rglob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            assert top in allowed | set(sys.stdlib_module_names), f"{path.name}: {name}"
        assert own_rooms(path) <= {"metrics"}, path.name


@pytest.mark.parametrize("module", ["spg_pipe", "spg_pipe.metrics", "spg_pipe.cli.main"])
def test_light_modules_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'timm', 'zarr'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_stay_small() -> None:
    long = {path.relative_to(ROOT).as_posix(): len(lines_of(path)) for path in SOURCES}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}


def test_the_package_stays_within_its_bounds() -> None:
    assert sum(len(lines_of(path)) for path in MODULES) <= 43_020
    assert sum(len(lines_of(path)) for path in SOURCES if path.is_relative_to(TESTS)) <= 35_230


def test_functions_fit_a_screen() -> None:
    long = {
        f"{path.relative_to(PACKAGE).as_posix()}: {function.name}": lines
        for path in MODULES
        for function in functions_of(path)
        if (lines := int(function.end_lineno or 0) - function.lineno + 1) > 60
    }
    assert long == {}


def test_functions_take_few_parameters() -> None:
    """The commands of cli/ are spelled out for typer; everything else takes at most eight."""
    many = {}
    for path in MODULES:
        if room_of(path) == "cli":
            continue
        for function in functions_of(path):
            names = function.args
            taken = [a.arg for a in [*names.posonlyargs, *names.args, *names.kwonlyargs]]
            if len(set(taken) - {"self", "cls"}) > 8:
                many[f"{path.relative_to(PACKAGE).as_posix()}: {function.name}"] = taken
    assert many == {}


def test_values_have_types_and_no_raw_json_is_passed_on() -> None:
    texts = {path: path.read_text() for path in MODULES}
    assert sum(text.count("dict[str, Any]") for text in texts.values()) <= 15
    assert [path.name for path, text in texts.items() if 'config["' in text] == []


def test_nothing_is_pickled() -> None:
    for path in MODULES:
        names = imported(path)
        picklers = {name for name in names if name.split(".")[0] in ("pickle", "dill", "joblib")}
        assert picklers <= {"pickle", "pickle.UnpicklingError"}, path  # an error to catch
        for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
            called = ast.unparse(call.func)
            options = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if called == "torch.load":
                assert options.get("weights_only") == "True", path
            if called in ("np.load", "numpy.load"):
                assert options.get("allow_pickle", "False") == "False", path
            assert called != "torch.save", path


def test_nothing_is_left_for_later() -> None:
    unfinished = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError|for now)\b")
    for path in MODULES:
        found = unfinished.search(path.read_text())
        assert found is None, f"{path.relative_to(ROOT)}: {found}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                silent = all(isinstance(statement, ast.Pass) for statement in node.body)
                assert not silent, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_public_functions_and_classes_say_what_they_are() -> None:
    bare = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            bare.append(path.relative_to(ROOT).as_posix())
        bare += [
            f"{path.relative_to(ROOT).as_posix()}: {node.name}"
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and ast.get_docstring(node) is None
        ]
    assert bare == []


def test_stages_only_parse_and_call() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        assert own_rooms(path) <= {"pipeline", "cli"}, path.name
        assert len(path.read_text().splitlines()) < 25, path.name

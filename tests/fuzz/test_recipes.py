"""Damaged and hostile recipes: read, or refused with one message that names the file."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.helpers import ROOT, spg
from hypothesis import given
from hypothesis import strategies as st

from fuzz.harness import ends_well, nothing_outside
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import Params, load_params
from spg_pipe.recipe.paths import Paths

TEXTS = [path.read_text() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
CONTENTS = [yaml.safe_load(text) for text in TEXTS]
STRINGS = r"""x; touch P;|$(touch P)|`touch P`|'|"|\|${name}|{name}| |..|../../etc|/|~|a/../b|--help
http://example.org/x|open_clip:hf-hub:a/b|local-dir:/|111|0x6f|1e3|no|2001-99-99"""
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 10**12, 10**30, 1e308, -0.5, float("nan"), float("inf"), 111.0),
    *("", "x" * 5000, "\x1b[2J", "\0", "é\u2028", "a\nb", *STRINGS.replace("\n", "|").split("|")),
    *([], {}, [[]], [1, "a", None], {"a": {"b": {}}}, {"; touch P;": 1}, {1: 2}, [{}] * 50),
]
"""Values in the place of any other."""
LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
FRAGMENTS = [
    *(b"\nname: 2001-99-99\n", b"\nname: !!int x\n", b"\nname: !!python/name:os.system\n"),
    *(b"&a [*a]", b"[" * 3000, b"{a: " * 300, b"9" * 5000, b"0x" + b"f" * 5000, b"\nname: *a\n"),
    *(b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"\\ud800"', b"!<tag> ", b"|\n"),
    *(b"%YAML 1.1\n---\n", b"%YAML 9.9\n---\n", b"\n...\n---\n", b">-\n", b"<<: *a\n", b"<<: 3\n"),
    *(b"- ", b"? ", b"\t", b"\r", b": ", b"#", b"@", f"\na0: &a0 [x]\n{LAUGHS}".encode()),
]
"""Bytes that are put anywhere."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("recipes")
    (made / "params.yaml").write_text(TEXTS[0])
    spg("report", cwd=made)  # imports, which run a program of the system
    return made


def places_of(content: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values are: keys and indices."""
    keys = list(content if isinstance(content, dict) else range(len(content)))
    deeper = [key for key in keys if isinstance(content[key], dict | list)]
    below = [place for key in deeper for place in places_of(content[key], (*here, key))]
    return [(*here, key) for key in keys] + below


@st.composite
def changed_values(draw: st.DrawFn) -> bytes:
    """A recipe of the project in which one to three values are others, or are gone."""
    content = copy.deepcopy(draw(st.sampled_from(CONTENTS)))
    for _ in range(draw(st.integers(1, 3))):
        *above, key = draw(st.sampled_from(places_of(content) or [("name",)]))
        target = content
        for part in above:
            target = target[part]
        action = draw(st.sampled_from(["replace", "replace", "wrap", "drop", "rename"]))
        value = target.pop(key, None) if isinstance(target, dict) else target[key]
        hostile = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        new = {"replace": hostile, "wrap": [value]}.get(action, value)
        if isinstance(target, list):
            target[key] = new
        elif action != "drop":
            target["; touch P;" if action == "rename" else key] = new
    return yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw: st.DrawFn) -> bytes:
    """A recipe of the project with other bytes in some places."""
    data = draw(st.sampled_from(TEXTS)).encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        rest = data[start + draw(st.sampled_from([0, 0, 1, 10, 200])) :]
        data = data[:start] + draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=6)) + rest
    return data


def artefacts_stay_below_their_folder(params: Params) -> None:
    paths, top = Paths(params, 64), params.artifacts.resolve()
    made = [path for row in params.datasets for path in (paths.manifest(row), paths.store(row))]
    made += [paths.detector(aux, params.seeds[0]) for aux in params.auxiliaries]
    made += [paths.scores(way.aux, way.target, params.seeds[0]) for way in params.directions]
    assert all(path.resolve().is_relative_to(top) for path in [*made, paths.report, paths.sweep])


@given(data=changed_values() | changed_bytes())
def test_a_recipe_is_read_or_refused_with_one_message(folder: Path, data: bytes) -> None:
    path = folder / "params.yaml"
    path.write_bytes(data)
    said = ends_well("datasets", cwd=folder)
    with nothing_outside(folder), contextlib.suppress(SpgError):
        artefacts_stay_below_their_folder(load_params(path))
        return
    assert "Error: params.yaml" in said


@given(
    key=st.sampled_from(["sae.k", "name", "backbone", "sweep.sae.k", "published", "a.b"]),
    value=st.sampled_from([*map(str, HOSTILE), *(part.decode("latin-1") for part in FRAGMENTS)]),
)
def test_a_value_of_set_is_read_or_refused_with_one_message(folder, key, value) -> None:
    (folder / "params.yaml").write_text(TEXTS[0])
    ends_well("report", "--set", f"{key}={value}", cwd=folder)

"""The reader of YAML: whatever the text, a plain value or one message with the place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from e2e.helpers import one_message, spg
from test_params import MINIMAL, A, B, fault

from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import load_params, parse_params
from spg_pipe.recipe.reader import parse_yaml

LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        (f"{LAUGHS}name: *a8\n", "more than 10,000 values, where an alias counts", 5),
        ("name: &x [*x]\n", "more than 10,000 values", 1),
        ("name: a\nsae: &x {k: &x 3}\n", "a second anchor of the same name", 2),
        ("[" * 90_000, "more than 20 lists and sections within each other", 1),
        ("name: a\nseeds: [2001-99-99]\n", "'2001-99-99' is no number, date or text", 2),
        (f"seeds: [{'9' * 5000}]", "'9999999999999999999999999999999999999999' is no number", 1),
        (f"seeds: [0x{'f' * 5000}]", "is no number, date or text", 1),
        ("name: !!int x", r"tags \(!!int\)", 1),
        ("name: !!python/object/apply:os.system [ls]", r"tags \(!!int\)", 1),
        ('name: "a\\0b"', "leave control characters out", 1),
        ('a: 1\nname: "\\e[2J"', "leave control characters out", 2),
        ('name: "\\ud800"', "leave control characters out", 1),
        ("{[a]: {b: *c}}", "undefined alias", 1),
    ],
)
def test_what_no_recipe_holds_is_refused_with_its_line(text: str, said: str, line: int) -> None:
    with pytest.raises(SpgError, match=rf"^my.yaml is not valid YAML: (.|\n)*{said}") as error:
        parse_yaml(text, "my.yaml")
    assert f"at line {line}, " in str(error.value)
    assert len(str(error.value)) < 500


def test_quoted_dates_and_a_few_aliases_are_read() -> None:
    content = parse_yaml("name: '2001-99-99'\na: &a {k: 1}\nb: [*a, *a]\n", "x")
    assert content == {"name": "2001-99-99", "a": {"k": 1}, "b": [{"k": 1}, {"k": 1}]}


def test_what_is_no_file_or_too_long_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "params.yaml")
    for name in ("params.yaml", "."):
        done = spg("report", "--params", name, cwd=tmp_path)
        assert "cannot be read (it is no file)" in one_message(done)
    path = tmp_path / "long.yaml"
    path.write_text("# é\n" * 30_000)
    with pytest.raises(SpgError, match=r"long.yaml has more than 100,000 characters"):
        load_params(path)


def test_set_has_the_same_limits_and_names_the_option(tmp_path: Path) -> None:
    recipe = "{name: a, datasets: [], auxiliaries: [], directions: []}"
    (tmp_path / "params.yaml").write_text(recipe)
    done = spg("report", "--set", "sae.k=2001-99-99", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --set sae.k=2001-99-99: '2001-99-99' is not valid YAML")


@pytest.mark.parametrize(
    "sections",
    [
        {"seeds": [2**32]},
        {"sae": {"dict_size": 10**12, "epochs": 10**9, "tokens": 10**12}},
        {"backbone": {"image_size": 10**6}},
        {"extract": {"tiles": {"a": [10**6]}, "batch_images": 10**7}},
        {"bank": {"neighbours": 10**7, "weight": 1e300}},
        {"published": [{"aux": "a", "target": "b", "source": "x", "image_auroc": 900}]},
        {"datasets": [A | {"name": "a" * 101}, B]},
        *({"backbone": {"alias": alias}} for alias in ("../../etc", "a//b", "/etc", "x/..", "a b")),
    ],
)
def test_no_number_is_boundless_and_no_name_leads_elsewhere(sections: dict[str, object]) -> None:
    message = fault(MINIMAL | sections)
    (values,) = sections.values()
    assert message.count(" should ") >= len(values if isinstance(values, dict) else "x"), message
    parse_params(MINIMAL | {"backbone": {"alias": "open_clip:ViT-B-32/laion2b_s34b_b79k"}}, "x")

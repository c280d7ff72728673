"""Recipes: typed, validated, and every fault named by its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import (
    GuideParams,
    MethodParams,
    Params,
    SaeParams,
    ScoreParams,
    load_params,
    parse_params,
)
from spg_pipe.recipe.places import place_of
from spg_pipe.recipe.reader import parse_yaml
from spg_pipe.recipe.ready_made import completed

ROOT = Path(__file__).resolve().parents[2]
A, B = ({"name": name, "layout": "folder", "root": name} for name in "ab")
MINIMAL: dict[str, Any] = {
    "name": "mine",
    "datasets": [A, B],
    "auxiliaries": ["a"],
    "directions": [{"aux": "a", "target": "b"}],
}


def fault(content: Any) -> str:
    with pytest.raises(SpgError) as error:
        parse_params(content, "params.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sae": {"dictsize": 3}}, "sae.dictsize: unknown parameter; did you mean 'dict_size'?"),
        ({"method": {"tau": 3}}, "method.tau: unknown parameter; known: detection, protocol"),
        ({"backbone": {"image-size": 3}}, "unknown parameter; did you mean 'image_size'?"),
        ({"sea": {}}, "sea: unknown parameter; did you mean 'sae'?"),
        ({"datasets": [A | {"roots": "x"}, B]}, "datasets.0.roots: unknown parameter; did you mea"),
        ({"sae": {"k": 0}}, "sae.k: "),
        ({"sae": {"k": "many"}}, "sae.k: "),
        ({"sae": {"batch_images": 16}}, "give either batch_images or batch_tokens"),
        ({"sae": {"batch_tokens": None}}, "give either batch_images or batch_tokens"),
        ({"bank": {"top_share": 0}}, "bank.top_share: "),
        ({"bank": {"weight": float("inf")}}, "bank.weight: Input should be a finite number"),
        ({"bank": {"top_share": float("nan")}}, "bank.top_share: Input should be a finite number"),
        ({"decision": {"top_share": float("inf")}}, "decision.top_share: Input should be a finite"),
        ({"score": {"image_score": "median"}}, "score.image_score: "),
        ({"directions": [{"aux": "a", "target": "c"}]}, "'c' is not among datasets: a, b"),
        ({"auxiliaries": ["a", "x"]}, "'x' is not among datasets"),
        ({"auxiliaries": ["b"]}, "auxiliaries must list every direction's aux"),
        ({"datasets": [A, A]}, "dataset names repeat"),
        ({"seeds": []}, "seeds"),
        ({"name": "a/b"}, "name"),
        ({"artifacts": "s3://a/b"}, "artifacts: a folder of this machine is expected"),
        (
            {"datasets": [A | {"root": "https://a.b/c"}, B]},
            "datasets.0.root: a folder of this machine",
        ),
    ],
)
def test_a_fault_is_named_by_its_place(sections: dict[str, Any], message: str) -> None:
    assert message in fault(MINIMAL | sections)


def test_all_faults_are_listed_at_once() -> None:
    message = fault(MINIMAL | {"sae": {"k": 0, "epoch": 3}, "method": {"tau": -1}})
    assert message.startswith("params.yaml has 3 errors:\n")
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "method.tau",
        "sae.k",
        "sae.epoch",
    ]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"directions": [{"aux": "a", "target": "a"}]},
            "a direction needs two datasets; a is its own target",
        ),
        ({"sae": {"k": 64, "dict_size": 32}}, "sae: k = 64 is larger than dict_size = 32"),
    ],
)
def test_a_rule_between_parameters_is_its_own_message(section: Any, message: str) -> None:
    assert fault(MINIMAL | section) == f"params.yaml has 1 error:\n  {message}"


def test_a_long_wrong_value_is_shown_in_part() -> None:
    message = fault(MINIMAL | {"sae": list(range(1000))})
    assert "found [0, 1, 2" in message
    assert len(message) < 250


@pytest.mark.parametrize("missing", ["name", "datasets", "auxiliaries", "directions"])
def test_a_missing_part_is_named(missing: str) -> None:
    content = {key: value for key, value in MINIMAL.items() if key != missing}
    assert f"{missing}: is required and is not there" in fault(content)


@pytest.mark.parametrize("content", [None, "text", [1], 3])
def test_a_file_without_sections_is_refused(content: Any) -> None:
    assert "expected sections" in fault(content)


def test_a_recipe_is_frozen_and_survives_yaml() -> None:
    recipe = MINIMAL | {"backbone": {"alias": "dinov3", "layers": [6, "8"]}}
    params = parse_params(recipe, "params.yaml")
    assert params.backbone.layers == ("6", "8")  # layers may be numbers
    with pytest.raises(ValueError, match="frozen"):
        params.name = "other"  # type: ignore[misc]
    text = yaml.safe_dump(params.model_dump(mode="json"))
    assert Params.model_validate(yaml.safe_load(text)) == params


def test_a_dataset_is_found_by_name_or_the_names_are_listed() -> None:
    params = parse_params(MINIMAL, "params.yaml")
    assert params.dataset("b").root == Path("b")
    with pytest.raises(SpgError, match=r"'visa' is not in the recipe, which has: a, b"):
        params.dataset("visa")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"a: [", "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"name: a\nsae: {k: 3}\nname: b\n", r'duplicate key "name" with value "b"[^!]*line 3'),
        (b"sae:\n  k: 3\n  'k': 4\n", r'duplicate key "k" with value "4"[^!]*line 3'),
    ],
)
def test_a_file_that_cannot_be_read_is_one_message(tmp_path, content, message):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpgError, match=message) as error:
        load_params(path)
    assert str(path) in str(error.value)


def test_a_key_that_overrides_a_merged_one_is_there_once() -> None:
    text = "base: &base {k: 2, lr: 1}\nsae:\n  <<: *base\n  k: 3\n"
    assert parse_yaml(text, "x")["sae"] == {"k": 3, "lr": 1}


SECTIONS = {
    "backbone",
    "extract",
    "method",
    "sae",
    "guides",
    "decision",
    "bank",
    "score",
    "metrics",
}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_leaves_defaults_out(path: Path) -> None:
    text = path.read_text()
    for place in ("data", "mvtec", "visa"):
        text = text.replace("{" + place + "}", f"/folder/of/{place}")
    assert "{" + "folder" not in text
    content = yaml.safe_load(text)
    params = parse_params(content, path.name)
    assert params.name == path.stem
    assert completed(text, params, 0) == text  # dvc.yaml finds what it reads
    for section in set(content) & SECTIONS:
        defaults = getattr(parse_params(MINIMAL, "params.yaml"), section).model_dump(mode="json")
        kept = {"alias", "image_size"} if section == "backbone" else set()
        same = {key for key, value in content[section].items() if defaults[key] == value}
        assert same <= kept, f"{section}: defaults are left out"


def leaves_of(section: type[BaseModel], within: str = "") -> Iterator[str]:
    """Full names of all settings: `sae.k`."""
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from leaves_of(type(field.default), f"{within}{name}.")
        elif within.partition(".")[0] in SECTIONS:
            yield f"{within}{name}"


def examples_of(place: str, pages: str) -> list[Any]:
    """The values that code in pages gives a setting: `place=value`, `place: value`, `[values]`."""
    code = re.findall(r"^```.*?^```|`[^`\n]+`", pages, flags=re.M | re.S)
    value = re.compile(rf"(?<![\w.]){re.escape(place)} ?[=:] ?(\[.*?\]|\{{.*?\}}|[^\s,}}'`]+)")
    return [yaml.safe_load(found) for text in code for found in value.findall(text)]


def test_every_setting_is_varied_by_a_recipe_an_ablation_or_an_example_of_the_docs() -> None:
    recipes = [
        parse_params(yaml.safe_load(path.read_text()), path.name)
        for path in (ROOT / "recipes").glob("*.yaml")
    ]
    axes = {place for recipe in recipes for place in (*recipe.sweep, *recipe.choose)}
    pages = "".join(
        page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    )
    defaults = parse_params(MINIMAL, "params.yaml")
    every = list(leaves_of(Params))
    assert len(every) <= 40
    for place in every:
        value = attrgetter(place)
        moved = any(value(recipe) != value(defaults) for recipe in recipes)
        shown = any(example != value(defaults) for example in examples_of(place, pages))
        assert moved or place in axes or shown, f"nobody varies {place}"


def test_the_paper_recipes_are_the_published_experiment() -> None:
    for name, size in (("paper-dinov3", 448), ("paper-openclip", 518)):
        text = (ROOT / f"recipes/{name}.yaml").read_text()
        params = parse_params(yaml.safe_load(text), name)
        assert params.backbone.image_size == size
        assert params.method == MethodParams(protocol="spg")
        assert params.sae == SaeParams(batch_images=16, batch_tokens=None)
        assert params.guides == GuideParams(kind="trained")
        assert params.score == ScoreParams(rule="published")
        assert {(d.aux, d.target) for d in params.directions} == {
            ("visa", "mvtec"),
            ("mvtec", "visa"),
        }
        assert {dataset.split for dataset in params.datasets} == {"test"}
        assert params.seeds == (111,)


def test_a_place_is_a_folder_or_a_url_in_one_spelling():
    places = {"a/b": Path("a/b"), "file:///a/b": Path("/a/b"), "FILE:///a": Path("/a")}
    places |= {"S3://Bucket/x/": "s3://Bucket/x", "s3://": "s3://"}
    assert {text: place_of(text) for text in places} == places
    assert place_of("C:/a") == Path("C:/a")
    assert place_of("./s3:/bucket/x") == Path("s3:/bucket/x")  # as its error advises
    assert place_of("./s3://bucket/x") == Path("s3:/bucket/x")
    refused = {"": "is empty: expected", " ": "is empty", "file://a/b": "expected a/b, or file:///"}
    refused |= {"file:/a/b": "expected /a/b, or file:///", "file://": "expected a folder, or"}
    for text, message in (refused | {"s3:/bucket/x": r"has two .*\./s3:/bucket/x for"}).items():
        with pytest.raises(SpgError, match=message):
            place_of(text)

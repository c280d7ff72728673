"""What the documentation says exists: commands, options, links, parameters, defaults, examples."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from layouts import scanned, write_mvtec
from pydantic import BaseModel
from tiny import SPEC

from spg_pipe.cli.main import app
from spg_pipe.recipe.data import BY_NAME
from spg_pipe.recipe.params import Dataset, Params, load_params, parse_params
from spg_pipe.recipe.paths import Paths

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted(DOCS.glob("*.md")),
]
STORE = "demo_run/artifacts/features/demo-mvtec-efficientnet-lite0-288.zarr"
DETECTOR = "demo_run/artifacts/detectors/demo/demo-mvtec-efficientnet-lite0-288-s111"
OTHERS_OPTIONS = {"--no-deps", "--version"}  # pip's; spg-pipe's own, without a command

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str, *languages: str) -> list[str]:
    """Fenced blocks of a page in one of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
    return [body for language, body in found if language in languages]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def spans(text: str) -> list[str]:
    """Inline code."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def command_lines(text: str) -> list[list[str]]:
    """Every `spg-pipe …` of a page, in blocks and in the text, split into words."""
    lines = [line for block in blocks(text, "sh", "") for line in block.splitlines()]
    lines = [line for line in [*lines, *spans(text)] if line.startswith("spg-pipe ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def commands(group: Any = None, above: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command's full name with its options."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{above}{name} ")
        else:
            options = {o for p in command.params for o in p.opts if o.startswith("-")}
            yield f"{above}{name}", options | {"--help"}


COMMANDS = dict(commands())


def named_command(words: list[str]) -> str | None:
    """The command that a line calls; None where it calls none that exists."""
    return next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)


@every_page
def test_every_command_line_names_a_command_and_its_own_options(page: Path) -> None:
    for words in command_lines(page.read_text()):
        if words[0] in ("COMMAND", "--help", "--version"):
            continue
        name = named_command(words)
        assert name, f"{page.name}: spg-pipe {' '.join(words)}"
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert given <= COMMANDS[name], f"{page.name}: spg-pipe {' '.join(words)}"


@every_page
def test_every_option_in_the_text_is_one_of_some_command(page: Path) -> None:
    given = {match for span in spans(page.read_text()) for match in re.findall(r"^--[\w-]+", span)}
    known = set().union(*COMMANDS.values())
    assert given <= known | OTHERS_OPTIONS


def test_the_command_line_page_lists_every_command_with_all_its_options() -> None:
    parts = re.split(r"^### `spg-pipe (.+)`$", (DOCS / "cli.md").read_text(), flags=re.M)
    sections = {
        name: re.split(r"^## ", body, flags=re.M)[0]
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    assert sections.keys() == COMMANDS.keys()
    for name, options in COMMANDS.items():
        mentioned = set(re.findall(r"`(--[\w-]+)", prose(sections[name])))
        for line in blocks(sections[name], "sh"):
            mentioned |= set(re.findall(r"(?<!\S)--[\w-]+", line))
        missing = {o for o in options if o.startswith("--")} - {"--help"} - mentioned
        assert not missing, name
        assert mentioned <= options, name


def test_the_readme_lists_every_command() -> None:
    named = set(spans(ROOT.joinpath("README.md").read_text()))
    assert COMMANDS.keys() <= named


@every_page
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} → {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page.name} → {target}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_of_docs_is_linked_from_the_index() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "index.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


@every_page
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    lines = [line for block in blocks(page.read_text(), "sh") for line in block.splitlines()]
    calls = [c for c in [*lines, *spans(page.read_text())] if re.match(r"(\w+=\S+ )?make ", c)]
    for call in calls:
        words = shlex.split(call, comments=True)
        named = [w for w in words[words.index("make") + 1 :] if "=" not in w and w.islower()]
        assert named, call
        assert set(named) <= targets, call


def parameters(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every parameter's place with its default; "required" where there is none."""
    for name, field in model.model_fields.items():
        place = f"{above}{name}"
        inner = [t for t in (field.annotation, *typing.get_args(field.annotation)) if is_model(t)]
        if inner and field.annotation is inner[0]:
            yield from parameters(inner[0], f"{place}.")
            continue
        named = BY_NAME[0] in field.metadata  # rows that a recipe writes as NAME: settings
        default = {} if named else plain(field.default)
        yield place, "required" if field.is_required() else default
        if inner:
            below = parameters(inner[0], f"{place}.NAME." if named else f"{place}[].")
            yield from (row for row in below if row[0] != f"{place}.NAME.name")


def is_model(kind: Any) -> bool:
    """Whether an annotation is a section of parameters."""
    generic = isinstance(kind, types.GenericAlias)
    return isinstance(kind, type) and not generic and issubclass(kind, BaseModel)


def plain(value: Any) -> Any:
    """A default as YAML would hold it."""
    if isinstance(value, Path):
        return value.as_posix()
    return list(value) if isinstance(value, tuple) else value


def test_the_recipes_page_lists_every_parameter_with_its_default() -> None:
    text = (DOCS / "recipes.md").read_text().partition("## Parameters")[2]
    rows = re.findall(r"^\| `([\w.\[\]]+)` \| (`[^`]+`|required) \|", text, flags=re.M)
    written = {place: yaml.safe_load(default.strip("`")) for place, default in rows}
    assert len(written) == len(rows)
    assert written == dict(parameters(Params))


def test_the_recipes_page_lists_every_recipe() -> None:
    text = (DOCS / "recipes.md").read_text().partition("## Parameters")[0]
    named = set(re.findall(r"^\| `([\w-]+)` \|", text, flags=re.M))
    assert named == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def test_the_recipes_in_the_text_are_valid() -> None:
    (recipe,) = blocks(ROOT.joinpath("README.md").read_text(), "yaml")
    mine = parse_params(yaml.safe_load(recipe), "README.md")
    (listed,) = blocks((DOCS / "datasets.md").read_text(), "yaml")
    for row in yaml.safe_load(listed)["datasets"]:
        Dataset.model_validate(row)
    detector = Paths(mine, 336).detector(mine.auxiliaries[0], mine.seeds[0])
    assert f" {detector} " in ROOT.joinpath("README.md").read_text()


def test_the_demos_paths_are_those_of_its_recipe() -> None:
    params = load_params(ROOT / "recipes" / "demo.yaml")
    paths = Paths(params, params.backbone.image_size or 0)
    text = ROOT.joinpath("README.md").read_text()
    assert f"demo_run/{paths.detector('demo-mvtec', 111)}" in text
    assert f"demo_run/{paths.report}/index.html" in text
    assert f"demo_run/{paths.store('demo-mvtec')}" == STORE


@pytest.fixture(scope="module")
def folder_with_a_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small store in the place of the demo's, of more images than a chunk of 64; a detector with
    its backbone; an image."""
    import torch
    from tiny import additive_plan, sae_params

    from spg_pipe.backbones.base import LayerTokens
    from spg_pipe.detector.make import make_detector
    from spg_pipe.recipe.params import MethodParams
    from spg_pipe.sae.train import train_sae
    from spg_pipe.store.extract import Extraction, extract

    class Pooled:
        """The image itself, averaged over cells of 16 pixels, as tokens of width 3."""

        spec = SPEC.model_copy(update={"layers": ("s16",)})

        def __call__(self, images: torch.Tensor) -> dict[str, LayerTokens]:
            cells = torch.nn.functional.avg_pool2d(images, 16).flatten(2).transpose(1, 2)
            return {"s16": LayerTokens(cells, cells.mean(dim=1, keepdim=True), (2, 2))}

    folder = tmp_path_factory.mktemp("docs")
    manifest = scanned("demo-mvtec", "mvtec", write_mvtec(folder / "data", good=40))
    store = extract(manifest, Pooled(), folder / STORE, Extraction(batch_images=2, shard_images=3))
    sae = train_sae(store, sae_params(dict_size=8, k=2, epochs=1), MethodParams(), seed=111)[0]
    make_detector(store, additive_plan(sae))[0].save(folder / DETECTOR)
    shutil.copy(manifest.image_path(0), folder / "part.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spg_pipe.backbones.load_backbone", lambda *_args, **_options: Pooled())
        yield folder


EXAMPLES = [
    (page, number) for page in PAGES for number in range(len(blocks(page.read_text(), "python")))
]


@pytest.mark.filterwarnings("error:The specified chunks separate")
@pytest.mark.parametrize(
    ("page", "number"), EXAMPLES, ids=lambda value: getattr(value, "name", value)
)
def test_the_python_examples_run(
    page: Path,
    number: int,
    folder_with_a_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = tmp_path / "example.py"
    script.write_text(blocks(page.read_text(), "python")[number])
    monkeypatch.chdir(folder_with_a_store)
    values = runpy.run_path(str(script))
    if "tokens" in values and "image" in values:  # read by offset: the same bytes as through Zarr
        import numpy as np
        import zarr

        expected = zarr.open_group(STORE, mode="r")["tokens_s16"][values["image"]]
        np.testing.assert_array_equal(values["tokens"].reshape(expected.shape), expected)


def test_the_notebook_page_lists_every_noun() -> None:
    import spg_pipe

    table = (DOCS / "notebook.md").read_text().partition("## Everything by its name")[2]
    rows = re.findall(r"^\| [a-z].*$", table, flags=re.M)
    assert {name for row in rows for name in spans(row)} == set(spg_pipe.__all__)
    for name in spg_pipe.__all__:
        assert callable(getattr(spg_pipe, name))


def test_training_on_arrays_takes_under_twenty_lines() -> None:
    example = blocks((DOCS / "notebook.md").read_text(), "python")[1]
    assert len([line for line in example.splitlines() if line.strip()]) < 20

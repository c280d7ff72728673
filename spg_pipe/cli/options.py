"""Options that several commands share, declared once; they reach a command as one object."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
import yaml
from typer.core import TyperCommand

from spg_pipe.errors import SpgError, UsageError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import (
    DEFAULT_PARAMS,
    OPTIONS,
    BankParams,
    load_params,
    nearest,
    parse_params,
)


class Cache(StrEnum):
    """What `TokenSource` takes as `cache`."""

    AUTO = "auto"
    DEVICE = "device"
    HOST = "host"
    NONE = "none"


class BankUse(StrEnum):
    """What a memory bank of normal images is used for."""

    FUSED = "fused"
    ALONE = "alone"


TilesOption = Annotated[
    str | None,
    typer.Option(
        "--tiles",
        metavar="SIDE,SIDE",
        help="Resize images to this side, pixels, and look at overlapping tiles; several: at each.",
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="A dataset (its test split), NAME/train, or a folder."),
]
AuxOption = Annotated[str | None, typer.Option("--aux", help="Auxiliary dataset of the recipe.")]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="One seed [default: the recipe's].")
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="A feature store, instead of the recipe's.")
]
CategoriesOption = Annotated[
    str | None, typer.Option("--categories", help="Only these, comma-separated: bottle,screw.")
]
BankOption = Annotated[
    BankUse | None,
    typer.Option("--bank", help="With --normals: with the guides, or alone [default: fused]."),
]


@dataclass(frozen=True)
class Options:
    """What several commands share; each takes those that `shared` names."""

    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="Alias or model name; see `spg-pipe backbones`."),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Local weights (.safetensors, .pth) of the backbone."),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", min=1, help="S, pixels; a multiple of the patch size."),
    ] = None
    layers: Annotated[
        str | None, typer.Option("--layers", help="Comma-separated, from 1: 6,8 or s16,s32.")
    ] = None
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out, on record, images that cannot be used.")
    ] = False
    params: Annotated[Path, typer.Option("--params", help="The active recipe.")] = DEFAULT_PARAMS
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Override a parameter; repeatable."
        ),
    ] = None
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …")] = "auto"
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Decoding threads [default: all cores].")
    ] = None
    cache: Annotated[
        Cache,
        typer.Option("--cache", help="Where tokens wait between epochs; changes no result."),
    ] = Cache.AUTO
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False

    def console(self) -> Console:
        """How much is said, and how."""
        return Console(0 if self.quiet else 2 if self.verbose else 1, self.as_json)

    def run(self) -> RecipeRun:
        """The recipe with these options on top.

        Raises
        ------
        SpgError
            If the recipe or an option is not valid.
        """
        recipe = load_params(self.params)
        content = recipe.model_dump(mode="json")
        section = content["backbone"]
        if self.backbone is not None and self.backbone != section["alias"]:
            # Another backbone has other layers and sizes: its own defaults apply.
            section.update(
                alias=self.backbone, image_size=None, layers=None, norm=None, weights=None
            )
        layers = self.layers
        given = {
            "weights": str(self.weights) if self.weights else None,
            "image_size": self.image_size,
            "layers": None if layers is None else names_of("--layers", layers, "6,8 or s8,s16"),
        }
        section.update({key: value for key, value in given.items() if value is not None})
        if self.skip_bad:
            content["extract"]["skip_bad"] = True
        for item in self.overrides or []:
            _override(content, item, self.params)
        params = parse_params(content, OPTIONS)
        return RecipeRun(params, self.console(), self.device, self.workers, str(self.cache), recipe)


RECIPE = ("params", "overrides", "verbose", "quiet", "as_json")
"""Options of every command that reads the recipe."""


def shared(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add shared options to a command, which is given them as one `Options`, its first argument."""
    hints = get_type_hints(Options, include_extras=True)
    added = [
        Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(Options)
        if one.name in names
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(signature(command).parameters.values())[1:]

        @wraps(command)
        def called(*arguments: Any, **given: Any) -> None:
            options = Options(**{one.name: given.pop(one.name) for one in added})
            command(options, *arguments, **given)

        parameters = [*(p.replace(kind=Parameter.KEYWORD_ONLY) for p in own), *added]
        called.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        return called

    return decorate


class PlainUsage(TyperCommand):
    """A command whose usage line shows arguments as its help and the docs do: `DETECTOR`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # Newer versions of typer put braces around what is required.
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


def bank_alone(normals: object, use: BankUse | None) -> bool:
    """Whether normal images judge without the guides.

    Raises
    ------
    SpgError
        If there are none.
    """
    if use is not None and normals is None:
        raise SpgError(f"--bank {use} says what normal images are used for: add --normals.")
    return use is BankUse.ALONE


def bank_params(normals: object, overrides: list[str] | None) -> BankParams:
    """Of a command without a recipe: the defaults with `--set bank.KEY=VALUE` on top.

    Raises
    ------
    SpgError
        If a parameter is unknown or out of range, or there are no normal images.
    """
    content: dict[str, Any] = {"bank": BankParams().model_dump(mode="json")}
    for item in overrides or []:
        if not item.startswith("bank.") or normals is None:
            raise SpgError(
                f"--set {item}: a detector keeps its own settings; only those of the bank of "
                "--normals, bank.KEY=VALUE, can be set here."
            )
        _override(content, item, DEFAULT_PARAMS)
    recipe = {"name": "bank", "datasets": [], "auxiliaries": [], "directions": []}
    return parse_params(recipe | content, OPTIONS).bank


def names_of(option: str, value: str, example: str) -> list[str]:
    """The names that an option lists.

    Raises
    ------
    SpgError
        If one of them is empty.
    """
    names = [part.strip() for part in value.split(",")]
    if not all(names):
        raise SpgError(
            f"{option} {value!r}: expected names with commas between them, for instance {example}. "
            f"Leave the option out for the default {option.lstrip('-')}."
        )
    return list(dict.fromkeys(names))


def sides_of(tiles: str | None) -> list[int] | None:
    """The sides that `--tiles` lists; None without it.

    Raises
    ------
    UsageError
        If one of them is no positive number.
    """
    if tiles is None:
        return None
    try:
        sides = [int(part) for part in tiles.split(",")]
    except ValueError:
        sides = []
    if not sides or min(sides) < 1:
        raise UsageError(f"--tiles {tiles!r}: expected pixels with commas, for instance 448,2016.")
    return sides


def _override(content: dict[str, Any], item: str, params_file: Path) -> None:
    place, equals, value = item.partition("=")
    *sections, key = place.split(".")
    if sections[:1] in (["sweep"], ["choose"]):  # their keys are places themselves
        sections, key = sections[:1], place.partition(".")[2]
    if not equals or not key:
        raise UsageError(f"--set {item}: expected SECTION.KEY=VALUE, for instance sae.k=16.")
    target = content
    for name in sections:
        if isinstance(target.get(name), dict):
            target = target[name]
            continue
        if name in target:
            raise SpgError(
                f"--set {item}: {name!r} is no section, so --set cannot reach into it. Edit it in "
                f"{params_file}."
            )
        known = [key for key, value in target.items() if isinstance(value, dict)] or target
        raise SpgError(
            f"--set {item}: {params_file} has no section {name!r}; {nearest(name, known)}"
        )
    try:
        target[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {item}: {value!r} is not a YAML value ({error}).") from error

"""Options that several commands share, and the run that they make."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

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


ParamsOption = Annotated[Path, typer.Option("--params", help="The recipe in force.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a parameter; repeatable."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Decoding threads [default: all cores].")
]
CacheOption = Annotated[
    Cache, typer.Option("--cache", help="Where tokens wait between epochs; changes no result.")
]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="Alias or model name; see `spg-pipe backbones`.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="Local weights (.safetensors, .pth) of the backbone."),
]
SizeOption = Annotated[
    int | None, typer.Option("--image-size", min=1, help="S, pixels; a multiple of the patch size.")
]
LayersOption = Annotated[
    str | None, typer.Option("--layers", help="Comma-separated, from 1: 6,8 or s16,s32.")
]
TilesOption = Annotated[
    str | None,
    typer.Option(
        "--tiles",
        metavar="SIDE,SIDE",
        help="Resize images to this side, pixels, and look at overlapping tiles; several: at each.",
    ),
]
SkipBadOption = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out, on record, images that cannot be used."),
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
DetectorOption = Annotated[
    Path | None, typer.Option("--detector", help="A detector's folder, instead of the recipe's.")
]
NormalsOption = Annotated[
    str | None,
    typer.Option("--normals", help="Few-shot: normal images: a store, NAME/train, or a folder."),
]
NormalFolderOption = Annotated[
    Path | None,
    typer.Option("--normals", help="Few-shot: a folder with a few normal images of the part."),
]
BankOption = Annotated[
    BankUse | None,
    typer.Option("--bank", help="With --normals: with the guides, or alone [default: fused]."),
]


class PlainUsage(TyperCommand):
    """A command whose usage line shows arguments as its help and the docs do: `DETECTOR`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # Newer versions of typer put braces around what is required.
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


def make_run(
    params_file: Path,
    *,
    overrides: list[str] | None = None,
    backbone: str | None = None,
    weights: Path | None = None,
    image_size: int | None = None,
    layers: str | None = None,
    skip_bad: bool = False,
    device: str = "auto",
    workers: int | None = None,
    cache: str = "auto",
    verbose: bool = False,
    quiet: bool = False,
    as_json: bool = False,
) -> RecipeRun:
    """The recipe with the command's options on top."""
    recipe = load_params(params_file)
    content = recipe.model_dump(mode="json")
    section = content["backbone"]
    if backbone is not None and backbone != section["alias"]:
        # Another backbone has other layers and sizes: its own defaults apply.
        section.update(alias=backbone, image_size=None, layers=None, norm=None, weights=None)
    given: dict[str, Any] = {
        "weights": str(weights) if weights else None,
        "image_size": image_size,
        "layers": names_of("--layers", layers, "6,8 or s8,s16") if layers is not None else None,
    }
    section.update({key: value for key, value in given.items() if value is not None})
    if skip_bad:
        content["extract"]["skip_bad"] = True
    for item in overrides or []:
        _override(content, item, params_file)
    params = parse_params(content, OPTIONS)
    console = Console(0 if quiet else 2 if verbose else 1, as_json)
    return RecipeRun(params, console, device, workers, str(cache), recipe)


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

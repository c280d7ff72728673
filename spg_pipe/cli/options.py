"""Options that several commands share, declared once; they reach a command as one object."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from typer import Argument, Option

from spg_pipe.errors import SpgError, UsageError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import CLUSTER, RecipeRun
from spg_pipe.recipe.data import LARGEST_SEED, LARGEST_SIDE, whole_number
from spg_pipe.recipe.machine import local_workers
from spg_pipe.recipe.params import (
    DEFAULT_PARAMS,
    OPTIONS,
    BankParams,
    load_params,
    nearest,
    parse_params,
)
from spg_pipe.recipe.places import place_of
from spg_pipe.recipe.reader import parse_yaml

if TYPE_CHECKING:
    from spg_pipe.pipeline.decide import HowToDecide
    from spg_pipe.pipeline.predict import Ask
    from spg_pipe.predict.view import Viewing

BankUse = Literal["fused", "alone"] | None
"""What a memory bank of normal images is used for."""
Cache = Literal["auto", "device", "host", "none"]
"""Where tokens wait between epochs: what `TokenSource` takes. It changes no result."""
TilesOption = Annotated[
    str | None,
    Option(metavar="SIDE,SIDE", help="Images at this side, pixels, or several, in tiles."),
]
SplitOption = Annotated[
    str | None, Option(help="A dataset (the recipe's split of it), NAME/train, a folder.")
]
AuxOption = Annotated[str | None, Option(help="Auxiliary dataset of the recipe.")]
StoreOption = Annotated[
    Any,
    Option(parser=place_of, metavar="PATH", help="A feature store, instead of the recipe's."),
]
OutOption = Annotated[Any, Option(parser=place_of, metavar="PATH", help="Write the store here.")]
StoreArgument = Annotated[
    Any, Argument(parser=place_of, metavar="STORE", help="A feature store's folder, or its URL.")
]
CategoriesOption = Annotated[str | None, Option(help="Only these, comma-separated: bottle,screw.")]
NormalsOption = Annotated[
    Path | None, Option(help="Few-shot: a folder with a few normal images of the part.")
]
BankOption = Annotated[
    BankUse, Option(help="With --normals: with the guides, or alone [default: fused].")
]


@dataclass(frozen=True)
class Options:
    """What several commands share; each takes those that `shared` names."""

    backbone: Annotated[str | None, Option(help="A name; see `spg-pipe backbones`.")] = None
    weights: Annotated[Path | None, Option(help="Local weights (.safetensors, .pth).")] = None
    image_size: Annotated[int | None, Option(min=1, help="Pixels; patches must fit.")] = None
    layers: Annotated[str | None, Option(help="Comma-separated, from 1: 6,8 or s16,s32.")] = None
    skip_bad: Annotated[bool, Option("--skip-bad", help="Leave out unusable images.")] = False
    params: Annotated[Path, Option(help="The active recipe.")] = DEFAULT_PARAMS
    overrides: Annotated[
        list[str] | None,
        Option("--set", metavar="SECTION.KEY=VALUE", help="A setting; repeatable."),
    ] = None
    aux: AuxOption = None
    seed: Annotated[
        int | None, Option(min=0, max=LARGEST_SEED, help="One seed [default: the recipe's].")
    ] = None
    ignore: Annotated[
        Path | None,
        Option(metavar="PATH", help="A mask for all images, or a folder of them: > 0 is ignored."),
    ] = None
    blank: Annotated[
        bool, Option("--blank", help="With --ignore: the backbone does not see it either.")
    ] = False
    letterbox: Annotated[
        bool, Option("--letterbox", help="Pad images to a square, instead of squashing them.")
    ] = False
    crop: Annotated[bool, Option("--crop", help="Judge their centre square alone.")] = False
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1, …")] = "auto"
    workers: Annotated[int | None, Option(min=1, help="Decoding threads [all cores].")] = None
    cluster: Annotated[
        str | None,
        Option(
            metavar="local[:N]|ADDRESS",
            envvar=CLUSTER,
            help="Compute on several processes, or on a Dask cluster.",
        ),
    ] = None
    cache: Annotated[Cache, Option(help="Where tokens wait between epochs.")] = "auto"
    calibration: Annotated[
        Path | None, Option(metavar="FILE", help="Thresholds [DETECTOR-calibration.json].")
    ] = None
    no_calibration: Annotated[
        bool, Option("--no-calibration", help="Decide nothing, whatever lies beside DETECTOR.")
    ] = False
    threshold: Annotated[float | None, Option(help="Of scores, by hand.")] = None
    pixel_threshold: Annotated[float | None, Option(min=0, max=1, help="Of maps, by hand.")] = None
    fdr: Annotated[
        float | None,
        Option(min=1e-6, max=0.9, help="Also decide the run as one batch: false discoveries."),
    ] = None
    drift: Annotated[
        int | None,
        Option(min=0, help="One false warning of drift in N normal images [10000; 0: none]."),
    ] = None
    verbose: Annotated[bool, Option("-v", "--verbose", help="Say more.")] = False
    quiet: Annotated[bool, Option("-q", "--quiet", help="Say nothing but errors.")] = False
    as_json: Annotated[bool, Option("--json", help="Print the result as JSON.")] = False

    def deciding(self) -> "HowToDecide | None":
        """How a run decides; None: it does not. An `SpgError` if options exclude each other."""
        from spg_pipe.pipeline.decide import HowToDecide

        names = [one.name for one in fields(HowToDecide)]
        how = HowToDecide(**{name: getattr(self, name) for name in names})
        if self.no_calibration and how != HowToDecide():
            raise SpgError("--no-calibration decides nothing: leave it out, or all of deciding.")
        return None if self.no_calibration else how

    def console(self) -> Console:
        """How much is said, and how."""
        return Console(0 if self.quiet else 2 if self.verbose else 1, self.as_json)

    def viewing(self) -> "Viewing":
        """How images are shown to the backbone; an `SpgError` if options do not fit together."""
        from spg_pipe.predict.view import Viewing

        if self.letterbox and self.crop:
            raise SpgError("--letterbox shows all of an image, --crop its centre: leave out one.")
        if self.blank and self.ignore is None:
            raise SpgError("--blank is of what --ignore names: add --ignore PATH.")
        viewing = Viewing("crop" if self.crop else "squash", self.ignore, self.blank)
        return replace(viewing, fit="letterbox") if self.letterbox else viewing

    def run(self) -> RecipeRun:
        """The recipe with these options on top.

        An `SpgError` if the recipe or an option is not valid.
        """
        recipe = load_params(self.params)
        content = recipe.model_dump(mode="json")
        if self.backbone not in (None, recipe.backbone.alias):
            # Another backbone has other layers and sizes: its own defaults apply.
            content["backbone"] = {"alias": self.backbone}
        layers = names_of("--layers", self.layers, "6,8 or s8,s16")
        given = {"weights": self.weights, "image_size": self.image_size, "layers": layers}
        content["backbone"] |= {key: value for key, value in given.items() if value is not None}
        if self.skip_bad:
            content["extract"]["skip_bad"] = True
        for item in self.overrides or []:
            _override(content, item, self.params)
        params = parse_params(content, OPTIONS).narrowed(self.aux, self.seed)
        local_workers(self.cluster)  # refuses what is none before anything is done
        run = RecipeRun(params, self.console(), self.device, self.workers, self.cache, recipe)
        return replace(run, options=self._as_text(), cluster=self.cluster)

    def _as_text(self) -> str:
        """The options that make another command work on the same recipe, as a shell reads them."""
        words = [] if self.params == DEFAULT_PARAMS else ["--params", str(self.params)]
        words += ["--backbone", self.backbone] if self.backbone else []
        words += [word for item in self.overrides or [] for word in ("--set", item)]
        return "".join(f" {shlex.quote(word)}" for word in words)


VIEW = ("ignore", "blank", "letterbox", "crop")
"""Options of every command that shows one's own images to a backbone."""
BACKBONE = ("backbone", "weights", "image_size", "layers")
"""Options of a command that loads one."""
RECIPE = ("params", "overrides", "verbose", "quiet", "as_json")
"""Options of every command that reads the recipe."""
DECIDING = ("calibration", "no_calibration", "threshold", "pixel_threshold", "fdr", "drift")
"""Options of every command that decides."""


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


def bank_alone(normals: object, use: BankUse) -> bool:
    """Whether normal images judge without the guides; an `SpgError` if there are none."""
    if use is not None and normals is None:
        raise SpgError(f"--bank {use} says what normal images are used for: add --normals.")
    return use == "alone"


def bank_params(normals: object, overrides: list[str] | None) -> BankParams:
    """Of a command without a recipe: the defaults with `--set bank.KEY=VALUE` on top.

    An `SpgError` if a parameter is unknown or out of range, or there are no normal images.
    """
    content: dict[str, Any] = {"bank": {}, "name": "bank"}
    content |= {"datasets": [], "auxiliaries": [], "directions": []}
    for item in overrides or []:
        if not item.startswith("bank.") or normals is None:
            raise SpgError(
                f"--set {item}: a detector keeps its own settings; only those of the bank of "
                "--normals, bank.KEY=VALUE, can be set here."
            )
        _override(content, item, DEFAULT_PARAMS)
    return parse_params(content, OPTIONS).bank


def names_of(option: str, value: str | None, example: str) -> list[str] | None:
    """The names that an option lists; None without it; an `SpgError` if one of them is empty."""
    if value is None:
        return None
    names = [part.strip() for part in value.split(",")]
    if not all(names):
        raise SpgError(
            f"{option} {value!r}: expected names with commas between them, for instance {example}. "
            f"Leave the option out for the default {option.lstrip('-')}."
        )
    return list(dict.fromkeys(names))


def shards_of(text: str) -> tuple[int, int]:
    """The two numbers of `--shards A:B`; a `UsageError` if they are none."""
    first, _, end = map(whole_number, text.partition(":"))
    if first is None or end is None:
        raise UsageError(f"--shards {text!r}: expected A:B, for instance 0:4 for the first four.")
    return first, end


def sides_of(tiles: str | None) -> list[int] | None:
    """The sides that `--tiles` lists; None without it.

    A `UsageError` if one of them is no positive number.
    """
    if tiles is None:
        return None
    try:
        sides = [int(part) for part in tiles.split(",")]
    except ValueError:
        sides = []
    if not sides or min(sides) < 1 or max(sides) > LARGEST_SIDE:
        raise UsageError(
            f"--tiles {tiles!r}: expected pixels (≤ {LARGEST_SIDE}) with commas, for instance "
            "448,2016."
        )
    return sides


def _override(content: dict[str, Any], item: str, params_file: Path) -> None:
    place, equals, value = item.partition("=")
    *above, key = place.split(".")
    if above[:1] in (["sweep"], ["choose"]):  # their keys are places themselves
        above, key = above[:1], place.partition(".")[2]
    if not equals or not key:
        raise UsageError(f"--set {item}: expected SECTION.KEY=VALUE, for instance sae.k=16.")
    target = content
    for name in above:
        sections = {key: inner for key, inner in target.items() if isinstance(inner, dict)}
        if name not in sections:
            raise SpgError(
                f"--set {item}: {params_file} has no section {name!r} (lists are edited in the "
                f"file itself); {nearest(name, sections or target)}"
            )
        target = sections[name]
    try:
        target[key] = parse_yaml(value, f"--set {item}: {value!r}")
    except SpgError as error:
        raise UsageError(str(error)) from error


def ask_of(
    options: Options,
    detector: Path,
    sources: Sequence[str],
    out: Path,
    normals: Path | None,
    bank: BankUse,
    tiles: str | None,
) -> "Ask":
    """A person's own images, as `predict` and `explain` take them.

    An `SpgError` if options do not fit together.
    """
    from spg_pipe.pipeline.predict import Ask
    from spg_pipe.predict.normals import NormalFolder

    alone, settings = bank_alone(normals, bank), bank_params(normals, options.overrides)
    return Ask(
        detector,
        sources,
        out,
        weights=options.weights,
        device=options.device,
        tiles=sides_of(tiles) or (),
        viewing=options.viewing(),
        normals=NormalFolder(normals, settings, alone) if normals else None,
    )

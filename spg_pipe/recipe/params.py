"""params.yaml as typed, validated values: one recipe, one section a stage."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from spg_pipe.errors import SpgError, counted
from spg_pipe.recipe.data import (
    BY_NAME,
    Dataset,
    DemoSet,
    Direction,
    Folder,
    ModelName,
    Name,
    Positive,
    Precision,
    Section,
    Seed,
    Side,
    SyntheticSet,
)
from spg_pipe.recipe.places import place_of
from spg_pipe.recipe.reader import parse_yaml, read_text

DEFAULT_PARAMS = Path("params.yaml")
OPTIONS = "the command's options"
"""The source of a recipe that `--set` and its like have changed."""
_SHOWN = 100
"""Characters of a wrong value that an error shows: it may be a whole section."""

Weight = Annotated[float, Field(ge=0, le=1_000_000)]
"""A million times another component is as good as alone."""
Percent = Annotated[float, Field(ge=0, le=100)]
Detection = Literal["cls", "mean_tokens"]
ImageScore = Literal["max", "cls", "top_mean", "log_mean_exp", "mix"]
AnySection = TypeVar("AnySection", bound=BaseModel)


def _url(value: object) -> object:
    place = place_of(str(value))
    if isinstance(place, Path):
        raise ValueError(f"a URL is expected (s3://bucket/stores), or no `stores`; found {value}")
    return place


class BackboneParams(Section):
    """Which frozen backbone, at which size; empty values mean the backbone's own."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # layers may be numbers
    alias: ModelName = "efficientnet-lite0"
    image_size: Side | None = None
    layers: tuple[str, ...] | None = None
    norm: Literal["post", "pre"] | None = None
    weights: Path | None = None
    precision: Precision = "float32"
    """How the network may compute, where the processor can (docs/backbones.md#precision)."""


class ExtractParams(Section):
    """How tokens are computed and stored."""

    batch_images: Positive = 8
    dtype: Literal["float16", "float32"] = "float16"
    compressor: Literal["none", "zstd"] = "none"
    """Of the tokens: `zstd` saves a few per cent for an archive and costs the reading speed."""
    skip_bad: bool = False
    """Leave out images that cannot be used, on record, instead of stopping. Also of `prepare`."""
    tiles: dict[Name, Annotated[tuple[Side, ...], Field(min_length=1)]] = Field(default={})
    """Dataset → sides in pixels to which its images are resized, to be cut into overlapping tiles
    of `backbone.image_size`; one of that size itself adds a view of the whole image."""


class MethodParams(Section):
    """What training and scoring share."""

    protocol: Literal["default", "spg"] = "default"
    detection: Detection = "cls"
    """The feature that the two global guides see."""


class SaeParams(Section):
    """Stage 1 (docs/method.md §2)."""

    dict_size: Positive = 4096
    k: Positive = 32
    epochs: Positive = 50
    tokens: Annotated[int, Field(ge=1, le=10**11)] | None = None
    """A budget of tokens a layer instead of epochs: the run ends with the batch that reaches it."""
    batch_images: Positive | None = None
    """Whole images a batch, as published, instead of shuffled tokens."""
    batch_tokens: Positive | None = 1024
    """With a budget of tokens this gives the same number of steps on a set of any size."""
    input_norm: Literal["none", "l2"] = "none"
    """What the SAE sees: raw tokens, or of unit length. Guides and scores use raw tokens in any
    case."""
    activation: Literal["topk", "batch_topk"] = "topk"
    prefixes: tuple[Positive, ...] = ()
    """Matryoshka: the first p latents must reconstruct alone, for each of these p."""

    @model_validator(mode="after")
    def _consistent(self) -> "SaeParams":
        if self.k > self.dict_size:
            raise ValueError(f"k = {self.k} is larger than dict_size = {self.dict_size}")
        if (self.batch_images is None) == (self.batch_tokens is None):
            raise ValueError(
                "give either batch_images or batch_tokens and set the other to null, "
                f"found batch_images = {self.batch_images}, batch_tokens = {self.batch_tokens}"
            )
        if list(self.prefixes) != sorted({p for p in self.prefixes if p < self.dict_size}):
            raise ValueError(
                f"prefixes = {list(self.prefixes)}: expected rising numbers below dict_size = "
                f"{self.dict_size}"
            )
        return self


class GuideParams(Section):
    """Stage 2 (docs/method.md §3, §7)."""

    kind: Literal["contrast", "trained"] = "contrast"
    """`contrast`: the difference of class means in a few signed atoms, in closed form, for which
    of this section only `atoms` counts; or `trained` with masks, as published."""
    atoms: Positive = 32
    """Atoms of each pair of contrast guides."""
    epochs: Positive = 15
    top_k: Positive | None = None
    """Hard top-k codes with a straight-through gradient, and no L1."""


class MapWeights(Section):
    """Weights of a patch's standardised components; 0 switches one off."""

    guides: Weight = 1.0
    self_distance: Weight = 0.25
    """How far the most similar patch elsewhere in the image is."""


class ImageWeights(Section):
    """Weights, before fitting, of an image's standardised components; 0 switches one off."""

    map_top: Weight = 1.0
    """The highest share of the map."""
    detection: Weight = 1.0
    """The feature `method.detection` along the direction of its own guides."""
    self_distance: Weight = 1.0
    """The highest share of the patches' self-distances."""


class DecisionParams(Section):
    """The additive decision (docs/method.md §8); used where `score.rule` is `additive`."""

    map: MapWeights = MapWeights()
    image: ImageWeights = ImageWeights()
    top_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of a map, the highest, that the components of an image are the means of."""

    @model_validator(mode="after")
    def _something(self) -> "DecisionParams":
        for name, section in (("map", self.map), ("image", self.image)):
            if not any(section.model_dump().values()):
                raise ValueError(f"decision.{name}: all weights are 0; nothing would be scored")
        return self


class BankParams(Section):
    """A memory bank of normal images of the target (docs/method.md §9); few-shot scores alone."""

    neighbours: Positive = 1
    """The distance of a patch is the mean over so many nearest patches of the bank."""
    weight: Weight = 4.0
    """Of its image score beside the detector's, both in deviations of normal images."""
    top_share: Annotated[float, Field(gt=0, le=1)] = 0.002
    """Share of the distances' map, the highest, that judges the image."""


class ScoreParams(Section):
    """Maps and image scores (docs/method.md §4)."""

    rule: Literal["additive", "published"] = "additive"
    """The additive decision (§8), or probabilities of the guides alone (§4), as published."""
    image_score: ImageScore = "max"
    """Of rule `published`: what is made of a map and the CLS probability (`image_scores`)."""


class MetricParams(Section):
    """How scores are judged (docs/metrics.md)."""

    protocol: Literal["exact", "spg"] = "exact"
    accumulator: Literal["auto", "sort", "histogram"] = "auto"
    """`auto` sorts up to 2^24 pixels a category, which is exact, and counts larger ones."""
    resolution: Literal["model", "original"] = "model"


class PublishedFigure(Section):
    """A figure from the literature, shown beside ours."""

    aux: Name
    target: Name
    image_auroc: Percent | None = None
    pixel_auroc: Percent | None = None
    source: str


class Params(Section):
    """A whole recipe."""

    name: Name
    artifacts: Folder = Path("artifacts")
    stores: Annotated[str, BeforeValidator(_url)] | None = None
    """A URL below which stores of tokens lie, instead of `artifacts` (docs/scale.md)."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (111,)
    demo_sets: Annotated[tuple[DemoSet, ...], *BY_NAME] = ()
    synthetic_sets: Annotated[tuple[SyntheticSet, ...], *BY_NAME] = ()
    datasets: tuple[Dataset, ...]
    auxiliaries: tuple[Name, ...]
    directions: tuple[Direction, ...]
    backbone: BackboneParams = BackboneParams()
    extract: ExtractParams = ExtractParams()
    method: MethodParams = MethodParams()
    sae: SaeParams = SaeParams()
    guides: GuideParams = GuideParams()
    decision: DecisionParams = DecisionParams()
    bank: BankParams = BankParams()
    score: ScoreParams = ScoreParams()
    metrics: MetricParams = MetricParams()
    published: tuple[PublishedFigure, ...] = ()
    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default={})
    """SECTION.KEY → values that `spg-pipe sweep` compares, in every combination."""
    choose: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default={})
    """The same of `sae`, `guides` and `decision`, judged on the auxiliary set by `spg-pipe choose`.
    The first of values that do equally well is taken."""

    @model_validator(mode="after")
    def _names_agree(self) -> "Params":
        known = [dataset.name for dataset in self.datasets]
        for what, values in (("dataset names", known), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} repeat: {', '.join(map(str, values))}")
        for way in self.directions:
            if way.aux == way.target:
                raise ValueError(f"a direction needs two datasets; {way.aux} is its own target")
            if way.aux not in self.auxiliaries:
                raise ValueError(f"auxiliaries must list every direction's aux; missing: {way.aux}")
        targets = [way.target for way in self.directions]
        for name in (*targets, *self.auxiliaries, *self.extract.tiles):
            if name not in known:
                raise ValueError(f"dataset {name!r} is not among datasets: {', '.join(known)}")
        return self

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name; an `SpgError` if params.yaml has none of that name."""
        for dataset in self.datasets:
            if dataset.name == name:
                return dataset
        known = ", ".join(dataset.name for dataset in self.datasets)
        raise SpgError(
            f"Dataset {name!r} is not in the recipe, which has: {known}. Add it under `datasets:`."
        )

    def narrowed(self, aux: str | None = None, seed: int | None = None) -> "Params":
        """The recipe of one auxiliary set, or of one seed, where they are named.

        An `SpgError` if the auxiliary set is none of the recipe's.
        """
        if aux not in (None, *self.auxiliaries):
            known = ", ".join(self.auxiliaries) or "none"
            raise SpgError(f"--aux {aux}: the auxiliaries are {known}. Add it in the recipe.")
        auxiliaries = self.auxiliaries if aux is None else (aux,)
        ways = tuple(way for way in self.directions if way.aux in auxiliaries)
        update = {"auxiliaries": auxiliaries, "directions": ways}
        return self.model_copy(update=update if seed is None else update | {"seeds": (seed,)})


def load_params(path: Path = DEFAULT_PARAMS) -> Params:
    """Read and validate a recipe.

    An `SpgError` if the file is missing, is not YAML, names a key twice, or a parameter is unknown
    or out of range; every fault is named by its place.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SpgError(
            f"{path} cannot be read ({error}). Run in the project's folder, write one with "
            "`spg-pipe recipe use NAME`, or name a file with --params."
        ) from error
    return parse_params(parse_yaml(text, str(path)), str(path))


def parse_params(content: Any, source: str) -> Params:
    """Validate a recipe that is already parsed; `source` is named in errors."""
    return validated(Params, content, source)


def validated(section: type[AnySection], content: Any, source: str) -> AnySection:
    """A section of a recipe, or all of it, from plain values; every fault is named by its place."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        lines = [_describe(fault) for fault in error.errors()]
        have = "have" if source == OPTIONS else "has"
        raise SpgError(
            f"{source} {have} {counted(len(lines), 'error')}:\n  " + "\n  ".join(lines)
        ) from error


def _describe(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _known_fields(fault["loc"][:-1])
        return f"{place}: unknown parameter; {nearest(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return f"{place}: is required and is not there"
    if fault["type"] == "value_error":
        # Rules of this module between several parameters: they say themselves what was found.
        message = str(fault["ctx"]["error"])
        return f"{place}: {message}" if place else message
    message = fault["msg"] if place else "expected sections such as `backbone:`"
    if fault["type"] == "tuple_type":
        message = f"expected a list, for instance [{fault['input']}]"
    if fault["type"] == "too_short":
        message = f"expected at least {fault['ctx']['min_length']} value"
    found = repr(fault.get("input"))
    shown = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}…"
    return f"{place or 'a recipe'}: {message}; found {shown}"


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not known: the nearest one, or all."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def _known_fields(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Params
    for part in (part for part in location if isinstance(part, str)):
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)

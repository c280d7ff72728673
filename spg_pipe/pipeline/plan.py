"""What N images cost in each stage, from rates that `probe` measured on this machine: formulas."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from spg_pipe.detector.scores import BATCH_IMAGES, CHUNK_IMAGES
from spg_pipe.metrics.protocols import chosen_accumulator
from spg_pipe.recipe.params import MetricParams, SaeParams
from spg_pipe.report.direction import MOST
from spg_pipe.sae.train import steps_of
from spg_pipe.store.cache import REQUEST_BYTES
from spg_pipe.store.extract import SHARD_IMAGES
from spg_pipe.store.format import StoreSpec

STAGES = ("extract", "train-sae", "train-guides", "score", "evaluate", "report")
COUNTS = "evaluate, counting"
"""`evaluate` where a category's pixels are counted, because they are too many to be sorted."""
_LISTED = 1000
"""Files that one request lists."""
_QUALITY_IMAGES = 16
"""Images a batch of the pass that judges an SAE."""
_SHARDS_HELD = 2
"""Shards in memory during extraction: one that is filled, and one that is written."""


@dataclass(frozen=True)
class Line:
    """What a stage takes before its first image, and what each image adds."""

    fixed: float
    each: float

    @classmethod
    def through(cls, few: tuple[int, float], many: tuple[int, float]) -> "Line":
        """The line through two measurements, (images, amount) each; it never falls."""
        each = max(0.0, (many[1] - few[1]) / (many[0] - few[0]))
        return cls(max(0.0, many[1] - each * many[0]), each)

    def at(self, images: float) -> float:
        """Of so many images."""
        return self.fixed + self.each * images


@dataclass(frozen=True)
class StageRates:
    """Of one stage, for a set of images and a seed."""

    seconds: Line
    """Of one core; on a GPU of a clock. Without `Rates.start_seconds`."""
    memory: Line
    """Private bytes beyond those of a process that has imported what it needs; of images that are
    held at once: of a shard, or of a category whose pixels are sorted."""
    kept: float
    """Private bytes of each image of the whole set."""
    disk: Line
    """Bytes of the artefact."""


@dataclass(frozen=True)
class Rates:
    """What this machine was measured to take."""

    start_seconds: float
    """Of every command, before it has anything to do: imports."""
    start_memory: float
    """Private bytes of such a process."""
    stages: Mapping[str, StageRates]
    sae_steps: Mapping[str, float]
    """Layer → seconds of a step of training, which the rates of train-sae leave out."""


@dataclass(frozen=True)
class Setting:
    """What of a recipe the formulas need."""

    store: StoreSpec
    image_size: int
    """S, pixels."""
    sae: SaeParams
    guide_epochs: int
    """Passes that train the guides; 0 for contrast guides."""
    metrics: MetricParams
    side: int
    """Of the images themselves, pixels."""

    def sorts(self, images: int) -> bool:
        """Whether evaluate sorts the pixels of a category of so many images."""
        side = self.side if self.metrics.resolution == "original" else self.image_size
        how = "sort" if self.metrics.protocol == "spg" else self.metrics.accumulator
        return chosen_accumulator(how, images * side**2) == "sort"


@dataclass(frozen=True)
class StagePlan:
    """What one stage costs: one process, and several workers of one core each."""

    stage: str
    disk_bytes: int
    memory_bytes: int
    """Private memory of a process."""
    seconds: float
    """Of one core, the start of the process included."""
    units: int
    """Parts that workers compute by themselves; 1: one machine does it all."""
    workers: int
    """Of those asked for, how many have something to do."""
    worker_seconds: float
    """Until the last of them is done."""
    requests: int
    """To a store elsewhere, without a cache; of extract the files that are written."""


def plan(
    rates: Rates, setting: Setting, images: int, *, workers: int = 1, categories: int = 1
) -> list[StagePlan]:
    """Every stage over a set of images, of categories of equal size, for one seed."""
    units = {"extract": math.ceil(images / SHARD_IMAGES)}
    units |= {"score": math.ceil(images / CHUNK_IMAGES), "evaluate": min(categories, images)}
    requests = _requests(setting, images)
    plans, in_category = [], math.ceil(images / categories)
    for stage in STAGES:
        rate = rates.stages[stage if stage != "evaluate" or setting.sorts(in_category) else COUNTS]
        seconds, parts = rate.seconds, units.get(stage, 1)
        counted = min(images, MOST) if stage == "report" else images  # a gallery has a limit
        if stage == "train-sae":
            shapes = setting.store.layers.items()
            steps = {x: steps_of(setting.sae, images, shape.patches) for x, shape in shapes}
            training = sum(rates.sae_steps[x] * count for x, count in steps.items())
            seconds = Line(seconds.fixed + training, seconds.each)
        begun = rates.start_seconds + seconds.fixed
        work = seconds.each * counted
        held = in_category if stage == "evaluate" else min(images, SHARD_IMAGES)
        plans.append(
            StagePlan(
                stage=stage,
                # Curves are most of what evaluating writes: of each category, and their mean.
                disk_bytes=round(
                    rate.disk.at(counted) * ((1 + categories) / 2 if stage == "evaluate" else 1)
                ),
                memory_bytes=round(rates.start_memory + rate.memory.at(held) + rate.kept * images),
                seconds=begun + work,
                units=parts,
                workers=min(workers, parts),
                worker_seconds=begun + work * math.ceil(parts / min(workers, parts)) / parts,
                requests=requests[stage],
            )
        )
    return plans


def _requests(setting: Setting, images: int) -> dict[str, int]:
    """Of each stage that reads or writes a store elsewhere."""
    layers, shards = setting.store.layers, math.ceil(images / SHARD_IMAGES)
    arrays = 2 * len(layers) + 1
    small = 8 + 3 * len(layers)
    written = shards * (arrays + 1) + 2 * small + arrays + 2
    opened = math.ceil((shards * arrays + small) / _LISTED) + arrays + small + 2

    together = {x: max(1, REQUEST_BYTES // setting.store.image_bytes(x)) for x in layers}

    def one_pass(batch: int) -> int:
        """All tokens in the store's order, so many images at a time, and the prefix tokens."""
        batches = math.ceil(images / batch)
        return sum(batches * math.ceil(batch / together[x]) + shards for x in layers)

    scattered = sum(_images_seen(setting.sae, images, each.patches) for each in layers.values())
    epochs = setting.guide_epochs * images * len(layers)
    return {
        "extract": written,
        "train-sae": opened + scattered + one_pass(_QUALITY_IMAGES),
        "train-guides": opened + shards + epochs + one_pass(BATCH_IMAGES) * (1 if epochs else 2),
        "score": opened + one_pass(BATCH_IMAGES),
        "evaluate": opened + shards,
        "report": opened + shards,
    }


def _images_seen(sae: SaeParams, images: int, patches: int) -> int:
    """Images that training reads, each by a request of its own as they are shuffled."""
    return math.ceil(sae.tokens / patches) if sae.tokens else sae.epochs * images


def shard_bytes(setting: Setting) -> float:
    """Bytes in memory for each image of a shard, during extraction."""
    tokens = sum(setting.store.image_bytes(layer) for layer in setting.store.layers)
    return float(_SHARDS_HELD * (tokens + setting.image_size**2))


def kept_bytes(setting: Setting, stage: str, row: float, mask: float) -> float:
    """Bytes in memory for each image of the whole set, by stage.

    `row` and `mask` are those of an image's row in a table, and of its mask as it is kept.
    """
    kept = {"extract": 2 * row, "score": 3 * row, "evaluate": 3 * row + mask}
    # Sums of two classes and a feature, and later components by two sets of guides: float32, in
    # batches that are then joined.
    shapes = setting.store.layers.values()
    values = max(sum(shape.dim for shape in shapes), sum(shape.patches for shape in shapes))
    kept["train-guides"] = mask + 2 * 3 * 4 * values
    return kept.get("evaluate" if stage == COUNTS else stage, 0.0)


def as_text(plans: list[StagePlan], workers: int) -> str:
    """A table for a terminal."""
    rows = [("", "disk", "memory", "CPU time", "requests", "workers", f"time of {workers}")]
    for each in plans:
        size, memory = _bytes(each.disk_bytes), _bytes(each.memory_bytes)
        numbers = f"{each.requests:,}", str(each.workers)
        seconds = _duration(each.seconds), _duration(each.worker_seconds)
        rows.append((each.stage, size, memory, seconds[0], *numbers, seconds[1]))
    disk, alone, shared = (
        sum(getattr(each, name) for each in plans)
        for name in ("disk_bytes", "seconds", "worker_seconds")
    )
    rows.append(("together", _bytes(disk), "", _duration(alone), "", "", _duration(shared)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
        for name, *cells in rows
    )


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB" if number < 999.5 else f"{number:,.0f} TB"


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 100 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:,.0f} days"

"""Where the artefacts of a recipe are; dvc.yaml spells the same paths.

Paths come from names alone (dataset, backbone, size, configuration, seed), so that a changed
parameter replaces an artefact in place and DVC's cache keeps the old one. Where a command's options
change a setting that determines an artefact, its name gets 8 hex digits of those settings.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import Dataset, DemoSet, Params, SyntheticSet
from spg_pipe.recipe.places import Place

Row = Dataset | str
"""A dataset, or the name of one that the recipe lists."""
Given = Mapping[str, Any] | None


@dataclass(frozen=True)
class Paths:
    """The artefacts of one recipe."""

    params: Params
    """The recipe with a command's options."""
    image_size: int
    """The backbone's S, resolved."""
    base: Params | None = None
    """The recipe without options, whose artefacts have names without digits."""
    digest: Callable[[object], str] = field(default=str, repr=False)
    """The fingerprint of plain values."""

    def manifest(self, row: Row) -> Path:
        """manifests/<dataset>-<split>.parquet"""
        row = self._listed(row)
        path = self.params.artifacts / "manifests" / f"{row.name}-{row.split}.parquet"
        return self._at(path, (), [row])

    def store(self, row: Row, part: Given = None) -> Place:
        """features/<dataset>-<backbone>-<size>.zarr, or below the URL that the recipe gives stores

        Of another split or folder than the recipe's its name says the split; `part` is how a part
        of the dataset was chosen.
        """
        row = self._listed(row)
        name = f"{row.name}-{row.split}" if part or row not in self.params.datasets else row.name
        path = self.params.artifacts / "features" / f"{name}-{self._backbone}.zarr"
        path = self._at(path, _STORE, [row], part)
        return f"{self.params.stores}/{path.name}" if self.params.stores else path

    def sae(self, aux: str, seed: int, given: Given = None) -> Path:
        """sae/<configuration>/<auxiliary>-<backbone>-<size>-s<seed>/

        `given`: fingerprints of inputs that options name, here and below.
        """
        return self._at(self._of("sae", aux, seed), _SAE, [aux], given)

    def detector(self, aux: str, seed: int, given: Given = None) -> Path:
        """detectors/<configuration>/<auxiliary>-<backbone>-<size>-s<seed>/"""
        return self._at(self._of("detectors", aux, seed), _DETECTOR, [aux], given)

    def scores(self, aux: str, target: Row, seed: int, given: Given = None) -> Path:
        """scores/<configuration>/<auxiliary>--<target>-<backbone>-<size>-s<seed>/"""
        row = self._listed(target)
        path = self._of("scores", f"{aux}--{row.name}", seed)
        return self._at(path, _SCORES, [aux, row], given)

    def explanations(self, aux: str, target: Row, seed: int, given: Given = None) -> Path:
        """explanations/<configuration>/<auxiliary>--<target>-<backbone>-<size>-s<seed>/"""
        row = self._listed(target)
        path = self._of("explanations", f"{aux}--{row.name}", seed)
        return self._at(path, _SCORES, [aux, row], given)

    def metrics(self, aux: str, target: Row, seed: int, given: Given = None) -> Path:
        """metrics/<configuration>/<…>.json; .csv and curves/ lie beside it."""
        row = self._listed(target)
        path = self._of("metrics", f"{aux}--{row.name}", seed, ".json")
        return self._at(path, _METRICS, [aux, row], given)

    def atlas(self, aux: str, seed: int, given: Given = None) -> Path:
        """atlas/<configuration>/<auxiliary>-<backbone>-<size>-s<seed>/"""
        return self._at(self._of("atlas", aux, seed), _DETECTOR, [aux], given)

    @property
    def report(self) -> Path:
        """report/<configuration>/"""
        path = self.params.artifacts / "report" / self.params.name
        return self._at(path, _REPORT, [row.name for row in self.params.datasets])

    def few_shot(self, aux: str, target: str, seed: int | None, given: Mapping[str, Any]) -> Path:
        """few-shot/<configuration>/[<auxiliary>--]<target>-<backbone>-<size>[-s<seed>]-<digits>:
        scores of normal images of the target, and with .json their metrics; never beside zero-shot
        ones."""
        path = self._of("few-shot", f"{aux}--{target}" if aux else target, seed)
        return with_suffix_hash(path, self.digest(dict(given)))

    def choice(self, aux: str, kind: str) -> Path:
        """choices/<configuration>/<auxiliary>-<backbone>-<size>.csv or .yaml"""
        return self._of("choices", aux, None, f".{kind}")

    @property
    def comparison(self) -> Path:
        """compare/<configuration>.csv"""
        return self.params.artifacts / "compare" / f"{self.params.name}.csv"

    def compared(self, method: str, aux: str | None, target: str, seed: int | None) -> Path:
        """compare/<configuration>/<method>/[<auxiliary>--]<target>-<backbone>-<size>[-s<seed>]/"""
        folder = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")
        path = self._of("compare", target if aux is None else f"{aux}--{target}", seed)
        return path.parent / folder / path.name

    @property
    def league(self) -> Path:
        """league/<configuration>.csv"""
        return self.params.artifacts / "league" / f"{self.params.name}.csv"

    @property
    def audit(self) -> Path:
        """audit/<configuration>.csv"""
        path = self.params.artifacts / "audit" / f"{self.params.name}.csv"
        return self._at(path, _REPORT, [row.name for row in self.params.datasets])

    @property
    def sweep(self) -> Path:
        """sweeps/<configuration>.csv"""
        return self.params.artifacts / "sweeps" / f"{self.params.name}.csv"

    @property
    def _backbone(self) -> str:
        return f"{self.params.backbone.alias}-{self.image_size}"

    def _of(self, kind: str, what: str, seed: int | None, end: str = "") -> Path:
        name = f"{what}-{self._backbone}" + ("" if seed is None else f"-s{seed}")
        return self.params.artifacts / kind / self.params.name / f"{name}{end}"

    def _listed(self, row: Row) -> Dataset:
        return self.params.dataset(row) if isinstance(row, str) else row

    def _at(
        self, path: Path, sections: Sequence[str], rows: Sequence[Row], given: Given = None
    ) -> Path:
        """The path as it is, or with digits where options changed or gave what determines it."""
        content: dict[str, object] = dict(given or {})
        for row in rows:
            if isinstance(row, Dataset) and row not in self.params.datasets:
                resolved = row.model_copy(update={"root": row.root.resolve()})
                content["row"] = resolved.model_dump(mode="json")
        settings = _settings(self.params, sections, rows)
        if not content and (self.base is None or settings == _settings(self.base, sections, rows)):
            return path
        return with_suffix_hash(path, self.digest([settings, content]))


_STORE = ("backbone", "extract")
_SAE = (*_STORE, "sae")
_DETECTOR = (*_SAE, "method", "guides", "decision")
_SCORES = (*_DETECTOR, "score")
_METRICS = (*_SCORES, "metrics")
_REPORT = (*_METRICS, "seeds", "datasets", "directions", "published")


def _settings(params: Params, sections: Sequence[str], rows: Sequence[Row]) -> list[object]:
    """What determines an artefact: sections of a recipe, and what it says of datasets.

    Images that cannot be used are a matter of the files, not of the settings; `batch_images` says
    how tokens are computed, and changes at most their last bits. How the published rule makes an
    image score is no part of what is fitted.
    """
    used = {name for name in sections if name != "decision" or params.score.rule == "additive"}
    fixed = {"extract": {"batch_images", "skip_bad", "tiles"}}
    settings: list[object] = [params.model_dump(mode="json", include=used, exclude=fixed)]
    settings += [params.method.protocol, "guides" in used and params.score.rule]
    for row in rows:
        name = row if isinstance(row, str) else row.name
        settings += [
            own.model_dump(mode="json") for own in params.datasets if row in (own, own.name)
        ]
        settings += sorted(params.extract.tiles.get(name, ())) if "extract" in used else []
    return settings


def with_suffix_hash(path: Path, digest: str) -> Path:
    """`name` → `name-<8 hex digits>`, before a known extension."""
    if path.suffix in (".zarr", ".json", ".parquet", ".csv"):
        return path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}")
    return path.with_name(f"{path.name}-{digest[:8]}")


def row_of(params: Params, stage: str) -> dict[str, str | int]:
    """What a stage of dvc.yaml works on: `score@way0-111` → the first direction and seed 111.

    An `SpgError` if the recipe has no such row.
    """
    group, _, key = stage.rpartition(":")[2].partition("@")
    sets: dict[str, Sequence[DemoSet | SyntheticSet]]
    sets = {"demo_data": params.demo_sets, "synthesise": params.synthetic_sets}
    rows: dict[str, dict[str, str | int]]
    rows = {row.name: {"dataset": row.name} for row in sets.get(group, ())}
    for number, dataset in enumerate(() if group in sets else params.datasets):
        rows[f"data{number}"] = {"dataset": dataset.name}
    for seed in params.seeds:
        if group in ("train_sae", "train_guides"):
            rows |= {f"{aux}-{seed}": {"aux": aux, "seed": seed} for aux in params.auxiliaries}
        for number, way in enumerate(params.directions if group in ("score", "evaluate") else ()):
            rows[f"way{number}-{seed}"] = {"aux": way.aux, "target": way.target, "seed": seed}
    if key not in rows:
        raise SpgError(
            f"The recipe has no row for the stage {stage!r}. Write whole numbers as 111, without a "
            "point or quotes, and run `dvc repro` again."
        )
    return rows[key]

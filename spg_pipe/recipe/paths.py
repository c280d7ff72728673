"""Where the pipeline keeps its artefacts; dvc.yaml spells the same paths.

Paths come from names alone (dataset, backbone, size, configuration, seed), so that a changed
parameter replaces an artefact in place and DVC's cache keeps the old one. A command whose
options differ from params.yaml adds 8 hex digits of what it was made from.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from spg_pipe.recipe.params import Params


@dataclass(frozen=True)
class Paths:
    """The artefacts of one recipe.

    Parameters
    ----------
    params : Params
    image_size : int
        The backbone's S, resolved.
    """

    params: Params
    image_size: int

    @property
    def _root(self) -> Path:
        return self.params.artifacts

    @property
    def _backbone(self) -> str:
        return f"{self.params.backbone.alias}-{self.image_size}"

    def manifest(self, dataset: str, split: str) -> Path:
        """manifests/<dataset>-<split>.parquet"""
        return self._root / "manifests" / f"{dataset}-{split}.parquet"

    def store(self, dataset: str) -> Path:
        """features/<dataset>-<backbone>-<size>.zarr"""
        return self._root / "features" / f"{dataset}-{self._backbone}.zarr"

    def sae(self, aux: str, seed: int) -> Path:
        """sae/<configuration>/<auxiliary>-<backbone>-<size>-s<seed>/"""
        return self._root / "sae" / self.params.name / f"{aux}-{self._backbone}-s{seed}"

    def detector(self, aux: str, seed: int) -> Path:
        """detectors/<configuration>/<auxiliary>-<backbone>-<size>-s<seed>/"""
        return self._root / "detectors" / self.params.name / f"{aux}-{self._backbone}-s{seed}"

    def scores(self, aux: str, target: str, seed: int) -> Path:
        """scores/<configuration>/<auxiliary>--<target>-<backbone>-<size>-s<seed>/"""
        name = f"{aux}--{target}-{self._backbone}-s{seed}"
        return self._root / "scores" / self.params.name / name

    def metrics(self, aux: str, target: str, seed: int) -> Path:
        """metrics/<configuration>/<…>.json; .csv and curves/ lie beside it."""
        name = f"{aux}--{target}-{self._backbone}-s{seed}.json"
        return self._root / "metrics" / self.params.name / name

    def few_shot(self, aux: str, target: str, seed: int | None) -> Path:
        """few-shot/<configuration>/[<auxiliary>--]<target>-<backbone>-<size>[-s<seed>]: scores of
        normal images of the target, and with .json their metrics; never beside zero-shot ones."""
        start, end = f"{aux}--" if aux else "", "" if seed is None else f"-s{seed}"
        run = f"{start}{target}-{self._backbone}{end}"
        return self._root / "few-shot" / self.params.name / run

    def choice(self, aux: str, kind: str) -> Path:
        """choices/<configuration>/<auxiliary>-<backbone>-<size>.csv or .yaml"""
        return self._root / "choices" / self.params.name / f"{aux}-{self._backbone}.{kind}"

    @property
    def comparison(self) -> Path:
        """compare/<configuration>.csv"""
        return self._root / "compare" / f"{self.params.name}.csv"

    @property
    def comparison_costs(self) -> Path:
        """compare/<configuration>-costs.json"""
        return self._root / "compare" / f"{self.params.name}-costs.json"

    def compared(self, method: str, aux: str | None, target: str, seed: int | None) -> Path:
        """compare/<configuration>/<method>/[<auxiliary>--]<target>-<backbone>-<size>[-s<seed>]/"""
        name = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")
        start, end = "" if aux is None else f"{aux}--", "" if seed is None else f"-s{seed}"
        run = f"{start}{target}-{self._backbone}{end}"
        return self._root / "compare" / self.params.name / name / run

    def free_detector(self, aux: str, seed: int) -> Path:
        """compare/<configuration>/detectors/<auxiliary>-<backbone>-<size>-s<seed>/"""
        name = f"{aux}-{self._backbone}-s{seed}"
        return self._root / "compare" / self.params.name / "detectors" / name

    @property
    def sweep(self) -> Path:
        """sweeps/<configuration>.csv"""
        return self._root / "sweeps" / f"{self.params.name}.csv"

    @property
    def report(self) -> Path:
        """report/<configuration>/"""
        return self._root / "report" / self.params.name


def with_suffix_hash(path: Path, digest: str) -> Path:
    """`name` → `name-<8 hex digits>`, before a known extension."""
    if path.suffix in (".zarr", ".json", ".parquet"):
        return path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}")
    return path.with_name(f"{path.name}-{digest[:8]}")

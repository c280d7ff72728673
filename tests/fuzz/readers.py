"""What the guided fuzzer feeds: for each reader of files valid ones, and how one is read.

A reader's file may be a whole artefact's only variable part: what a stranger can compute, such as a
fingerprint or the digest of tensors, is put right, or else nothing behind it would be reached.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from detector.test_evaluation import calibration_of
from e2e.helpers import ROOT
from layouts import photos, save, scanned, write_visa
from tiny import METHOD, SAE, additive_plan, extracted, manifest_of, sae_params, write_folder

from fuzz.edits import RAW, edited, starts, with_seal
from fuzz.test_detectors import parts, sealed, written
from fuzz.test_images import FILES, size_if_readable
from fuzz.test_recipes import artefacts_stay_below_their_folder
from fuzz.test_stores import sealed as sealed_group
from fuzz.test_stores import use
from fuzz.test_tables import COCO, ROWS, write_table
from spg_pipe.bank.fitted import FittedBank, GoodImages, fit_bank
from spg_pipe.bank.normal_patches import tokens_of_store
from spg_pipe.bank.record import BankRecord
from spg_pipe.datasets.layouts.visa import SPLIT_FILE
from spg_pipe.datasets.manifest import Manifest, ManifestRecord, _rows_sha256
from spg_pipe.decision.calibration import Calibration, Limits, Threshold
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.judge import judge
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.metrics_file import MetricsRecord, read_metrics
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import DetectorRecord, ScoresRecord
from spg_pipe.detector.scores import Scores, score_store
from spg_pipe.images.decoding import LIMIT
from spg_pipe.metrics import flat_rows
from spg_pipe.recipe.params import BankParams, MetricParams, load_params
from spg_pipe.sae.run import SaeRecord, SaeRun
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.verify import verify


@dataclass(frozen=True)
class Reader:
    """How bytes are read. `read` may raise an SpgError and nothing else."""

    read: Callable[[bytes], object]
    corpus: list[bytes]


class World:
    """A folder with one small artefact of each kind, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = manifest_of(write_folder(folder / "parts"))

    def store(self) -> FeatureStore:
        return extracted(self.manifest, self.folder / "store.zarr")

    def detector(self, store: FeatureStore) -> Detector:
        return make_detector(store, additive_plan(train_sae(store, SAE, METHOD, seed=111)[0]))[0]

    def tokens(self, store: FeatureStore) -> dict[str, torch.Tensor]:
        rows = np.array([0, 5])
        return {
            layer: torch.from_numpy(
                np.concatenate([store.cls(layer, rows)[:, None], store.tokens(layer, rows)], axis=1)
            ).float()
            for layer in store.layers
        }

    def file(self, name: str) -> Path:
        path = self.folder / "fuzzed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def manifest(world: World) -> Reader:
    """Byte 0: a whole Parquet file, its record, or a cell of its first row."""
    whole, path = world.file("whole.parquet"), world.file("x.parquet")
    world.manifest.save(whole)
    arrow = pq.read_table(whole)
    record = arrow.schema.metadata[b"spg"]

    def read(content: bytes) -> None:
        kind, rest = content[:1], content[1:]
        if kind == b"P":
            path.write_bytes(rest)
        else:
            table = arrow
            if kind == b"R" and rest:
                column, value = list(arrow.column_names)[rest[0] % arrow.num_columns], rest[1:41]
                cells = arrow.column(column).to_pylist()
                text = isinstance(cells[0], str)
                cells[0] = value.decode("utf-8", "replace") if text else value[0] if value else 0
                place = arrow.schema.get_field_index(column)
                new = pa.array(cells, arrow.schema.field(column).type)
                table, rest = arrow.set_column(place, arrow.schema.field(column), new), record
            raw = json.loads(record) if kind == b"R" else None
            if raw:
                rows = _rows_sha256(table.replace_schema_metadata(None).to_pandas())
                rest = json.dumps(raw | {"rows_sha256": rows}).encode()
            sealed_record = with_seal(RAW + rest if kind == b"R" else rest, record, ManifestRecord)
            pq.write_table(table.replace_schema_metadata({b"spg": sealed_record}), path)
        made = Manifest.load(path, world.manifest.root)
        assert len(made.table) == len(made.table["path"])

    rows = [b"R" + bytes([n]) + text for n in range(8) for text in (b"../x", b"bolt/good/00.png")]
    records = [b"J" + start for start in starts(record)]
    return Reader(read, [b"P" + whole.read_bytes(), *records, *rows])


def recipe(world: World) -> Reader:
    """JSON is YAML: edits are of the spg-plus recipe."""
    path, files = world.file("params.yaml"), sorted((ROOT / "recipes").glob("*.yaml"))
    whole = json.dumps(yaml.safe_load((ROOT / "recipes" / "spg-plus.yaml").read_text())).encode()

    def read(content: bytes) -> None:
        path.write_bytes(edited(content, whole))
        artefacts_stay_below_their_folder(load_params(path))

    return Reader(read, [*(RAW + file.read_bytes() for file in files), *starts(whole)])


def split_csv(world: World) -> Reader:
    root = write_visa(world.file("visa"), ("candle",), size=(16, 16))
    path = root / SPLIT_FILE

    def read(content: bytes) -> None:
        path.write_bytes(content)
        scanned("v", "visa", root, split="all")

    return Reader(read, [path.read_bytes()])


def table_csv(world: World) -> Reader:
    root = world.file("csv")
    photos(root, "img/a.png", "img/b.png", "img/c.png")
    save(np.ones((5, 7), np.uint8), root / "masks" / "b.png")

    def read(content: bytes) -> None:
        (root / "parts.csv").write_bytes(content)
        scanned("x", "csv", root, split="all")

    return Reader(read, [write_table(root.parent, ROWS)])


def annotations(world: World) -> Reader:
    root = photos(world.file("coco"), "img/a.png", "img/b.png", "img/c.png")
    whole = json.dumps(COCO).encode()

    def read(content: bytes) -> None:
        (root / "all.json").write_bytes(edited(content, whole))
        scanned("x", "coco", root, split="all")

    return Reader(read, starts(whole))


def _changed(whole: Any, record: Any, content: bytes, *, tensors: bool) -> tuple[bytes, bytes]:
    """Configuration and tensors, one of them from the fuzzer's bytes, the digests put right."""
    if not tensors:
        return with_seal(content, json.dumps(whole.config).encode(), record), whole.content
    config = {**whole.config, "tensors_sha256": sha256(content).hexdigest()}
    return json.dumps(sealed(config, record)).encode(), content


def _detector(world: World, which: str) -> Reader:
    store = world.store()
    tokens, spec, place = world.tokens(store), store.spec, world.file("detector")
    world.detector(store).save(place)
    whole, shapes = parts(place, "detector"), {name: x.grid for name, x in spec.layers.items()}
    text = json.dumps(whole.config).encode()

    def read(content: bytes) -> None:
        files = _changed(whole, DetectorRecord, content, tensors=which == "tensors")
        detector = Detector.load(written(place, "detector", *files))
        detector.check_backbone(spec.backbone, "the store")
        judged = judge(detector, tokens, shapes, spec.backbone, detector.rule())
        assert np.isfinite(judged.columns["score"]).all()
        assert all(values.isfinite().all() for values in judged.patches.values())

    return Reader(read, starts(text) if which == "config" else [whole.content])


def sae(world: World) -> Reader:
    """Byte 0: its configuration or its tensors."""
    store, place = world.store(), world.file("sae")
    run, quality, curve = train_sae(store, sae_params(epochs=1), METHOD, seed=1)
    run.save(place, quality, curve)
    whole = parts(place, "sae")
    text = json.dumps(whole.config).encode()

    def read(content: bytes) -> None:
        files = _changed(whole, SaeRecord, content[1:], tensors=content[:1] == b"T")
        for made in SaeRun.load(written(place, "sae", *files)).layers.values():
            assert made(torch.zeros(2, made.encoder.shape[1])).x_hat.isfinite().all()

    return Reader(read, [*(b"J" + each for each in starts(text)), b"T" + whole.content])


def bank(world: World) -> Reader:
    """Byte 0: its configuration or its tensors."""
    store, place, rows = world.store(), world.file("bank"), np.array([0, 1, 2])
    detector, tokens, spec = world.detector(store), world.tokens(store), store.spec.backbone
    goods = GoodImages(tokens_of_store(store, rows), [(f"{n}.png", "") for n in rows], None)
    fit_bank(goods, detector, spec, BankParams()).save(place)
    whole = parts(place, "bank")
    text = json.dumps(whole.config).encode()

    def read(content: bytes) -> None:
        files = _changed(whole, BankRecord, content[1:], tensors=content[:1] == b"T")
        made = FittedBank.load(written(place, "bank", *files))
        made.require_serving(detector, spec, alone=False)
        judged = made.judge(tokens, detector, spec, alone=False)
        assert all(np.isfinite(values).all() for values in judged.columns.values())

    return Reader(read, [*(b"J" + each for each in starts(text)), b"T" + whole.content])


def calibration(world: World) -> Reader:
    path = world.file("calibration.json")
    limits = Limits(
        image=Threshold(value=1.5, says="5 %"), pixel=None, scores=(0.5, 1.0, 1.25), anomalous=0
    )
    calibration_of({"": limits}).save(path)
    whole = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(with_seal(content, whole, Calibration))
        made = Calibration.load(path)
        for each in made.groups.values():
            assert each.decide(1.0) in (None, "normal", "anomalous")
            assert (each.p_value(1.0) or 0) <= 1

    return Reader(read, starts(whole))


def store_metadata(world: World) -> Reader:
    """Byte 0: the group's metadata, or those of the tokens of a layer too."""
    place = world.store().path
    group, inner = place / "zarr.json", place / "tokens_1" / "zarr.json"
    whole, whole_inner = group.read_bytes(), inner.read_bytes()
    index = (place / "shards.json").read_bytes()

    def read(content: bytes) -> None:
        of_array = content[:1] == b"A"
        changed = edited(content[1:], whole_inner if of_array else whole)
        inner.write_bytes(changed if of_array else whole_inner)
        try:
            value = json.loads(changed)
            if of_array:
                value = json.loads(whole)
                value["consolidated_metadata"]["metadata"]["tokens_1"] = json.loads(changed)
            changed = json.dumps(sealed_group(value, index)).encode()
        except (ValueError, RecursionError):
            pass
        group.write_bytes(changed)
        use(place)

    of_group, of_array = starts(whole), starts(whole_inner)
    return Reader(read, [*(b"G" + each for each in of_group), *(b"A" + each for each in of_array)])


def shards(world: World) -> Reader:
    place = world.store().path
    path, metadata = place / "shards.json", place / "zarr.json"
    whole, group = path.read_bytes(), metadata.read_bytes()

    def read(content: bytes) -> None:
        changed = edited(content, whole)
        path.write_bytes(changed)
        metadata.write_text(json.dumps(sealed_group(json.loads(group), changed)))
        (use if len(content) % 2 else verify)(place)

    return Reader(read, starts(whole))


def images(world: World) -> Reader:
    path = world.file("x.png")
    os.environ[LIMIT] = "1"  # megapixels

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for what in ("image", "mask"):
            assert size_if_readable(path, what, True) != ()

    return Reader(read, FILES)


def scores(world: World) -> Reader:
    store, place = world.store(), world.file("scores")
    score_store(world.detector(store), store, place)
    path = place / "config.json"
    whole = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(with_seal(content, whole, ScoresRecord))
        made = Scores.load(place)
        assert np.isfinite(made.maps(np.array([0, 3]))).all()

    return Reader(read, starts(whole))


def metrics(world: World) -> Reader:
    store, path = world.store(), world.file("metrics.json")
    made = score_store(world.detector(store), store, world.file("scores"))
    evaluate_scores(made, store, MetricParams()).save(path)
    whole = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(with_seal(content, whole, MetricsRecord))
        assert flat_rows(read_metrics(path).table)

    return Reader(read, starts(whole))


READERS: dict[str, Callable[[World], Reader]] = {
    "manifest": manifest,
    "params.yaml": recipe,
    "split-csv": split_csv,
    "table-csv": table_csv,
    "coco": annotations,
    "detector-json": lambda world: _detector(world, "config"),
    "detector-tensors": lambda world: _detector(world, "tensors"),
    "sae": sae,
    "bank": bank,
    "calibration": calibration,
    "store-metadata": store_metadata,
    "shards.json": shards,
    "images": images,
    "scores": scores,
    "metrics": metrics,
}

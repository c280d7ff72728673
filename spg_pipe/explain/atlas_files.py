"""The files of an atlas folder: its tables, its strips of crops, and what they were made from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import versions
from spg_pipe.artefacts.record import Count, FileName, Name, Record, Seed, write_record
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import DetectorOrigin
from spg_pipe.explain.atlas import Atlas
from spg_pipe.explain.crops import Photographs, Progress, write_strips
from spg_pipe.store.format import Selection
from spg_pipe.store.reader import FeatureStore

CROPS = "crops"
"""The folder of the strips."""


class AtlasStore(Record):
    """A store that was passed over."""

    dataset: Name
    split: Name
    selection: Selection | None
    images: Count
    fingerprint: Name

    @classmethod
    def of(cls, store: FeatureStore) -> "AtlasStore":
        """What an atlas keeps of a store."""
        return cls(
            dataset=store.spec.dataset,
            split=store.spec.split,
            selection=Selection.of_manifest(store.selection),
            images=len(store),
            fingerprint=store.fingerprint,
        )


class AtlasRecord(Record):
    """config.json of an atlas."""

    kind: Literal["atlas"] = "atlas"
    format: Literal[1] = 1
    detector: DetectorOrigin
    backbone: BackboneSpec
    stores: tuple[AtlasStore, ...]
    every: bool
    """Every latent has rows, not only the detector's atoms."""
    other_seeds: tuple[Seed, ...]
    """Of the dictionaries that atoms were looked for in."""
    licences: tuple[str, ...]
    """Of the images, of which it shows parts, and the backbone's weights."""
    fingerprint: Name = ""
    versions: dict[Name, Name] = Field(default_factory=versions)
    files_sha256: dict[FileName, Name] = Field(default_factory=dict)
    """Of the tables."""

    @classmethod
    def of(
        cls,
        detector: Detector,
        stores: Sequence[FeatureStore],
        other_seeds: Sequence[int],
        *,
        every: bool,
    ) -> "AtlasRecord":
        """The record of an atlas of a detector."""
        licences = [
            *detector.record.licences,
            *(one for store in stores for one in store.spec.licences),
        ]
        return cls(
            detector=detector.record.origin,
            backbone=detector.record.backbone,
            stores=tuple(map(AtlasStore.of, stores)),
            every=every,
            other_seeds=tuple(other_seeds),
            licences=tuple(dict.fromkeys(licences)),
        ).sealed()


def write_crops(
    atlas: Atlas,
    photographs: Sequence[Photographs],
    folder: Path,
    progress: Progress | None = None,
) -> Atlas:
    """Write crops/; the atlas then names the files instead of the strips, null where none is."""
    (folder / CROPS).mkdir()
    written = write_strips(atlas.strips, photographs, folder / CROPS, progress)
    files = {name: f"{CROPS}/{name}.jpg" for name in written}
    atoms = atlas.atoms.copy()
    for column in ("crops", "projection_crops"):
        atoms[column] = atoms[column].map(files.get).astype("string")  # also where all are null
    return replace(atlas, atoms=atoms)


def write_tables(atlas: Atlas, record: AtlasRecord, folder: Path) -> None:
    """Write atoms.parquet, categories.parquet, factors.parquet, generality.parquet, config.json."""
    tables = {
        "atoms": atlas.atoms,
        "categories": atlas.categories,
        "factors": atlas.factors.table,
        "generality": atlas.factors.generality,
    }
    for name, table in tables.items():
        # No pandas metadata: it names versions.
        rows = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
        pq.write_table(rows, folder / f"{name}.parquet", compression="zstd")
    digests = file_digests(folder, *(f"{name}.parquet" for name in tables))
    write_record(folder / "config.json", record.model_copy(update={"files_sha256": digests}))

"""The artefact of stage 1: the SAEs of every layer with what they came from, and its files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from spg_pipe.artefacts.checkpoint import below
from spg_pipe.artefacts.digests import CURVE, file_digests, load_tensors, save_tensors
from spg_pipe.artefacts.files import fresh_folder, versions, write_text
from spg_pipe.artefacts.reading import reading
from spg_pipe.artefacts.record import Count, FileName, Name, Record, Seed, read_record, write_record
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.recipe.params import SaeParams
from spg_pipe.recipe.protocol import Protocol
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.store.reader import FeatureStore

WHAT = "sparse autoencoder"
COMMAND = "spg-pipe train-sae"


class SaeRecord(Record):
    """config.json: what the SAEs came from."""

    kind: Literal["sparse autoencoder"] = "sparse autoencoder"
    format: Literal[2] = 2
    layers: tuple[Name, ...]
    seed: Seed
    """Of the dictionary and of the batches' order."""
    sae: SaeParams | None
    """None of the fixed axes that a study puts in the place of a dictionary."""
    protocol: Protocol
    store: Name
    """Fingerprint of the store that it was trained on."""
    dataset: Name
    split: Name
    images: Count
    tokens_seen: dict[Name, Count]
    """By layer."""
    backbone: BackboneSpec
    licences: tuple[str, ...]
    """Of the images and the backbone's weights."""
    fingerprint: Name = ""
    versions: dict[Name, Name] = Field(default_factory=versions)
    tensors_sha256: Name = ""
    """Of sae.safetensors."""

    @model_validator(mode="after")
    def _agree(self) -> "SaeRecord":
        self.backbone.require_layers(self.layers)
        return self

    @classmethod
    def of(
        cls,
        store: FeatureStore,
        sae: SaeParams | None,
        protocol: Protocol,
        seed: int,
        tokens_seen: dict[str, int],
    ) -> "SaeRecord":
        """The record of SAEs that were made from a store."""
        return cls(
            layers=store.layers,
            seed=seed,
            sae=sae,
            protocol=protocol,
            store=store.fingerprint,
            dataset=store.spec.dataset,
            split=store.spec.split,
            images=len(store),
            tokens_seen=tokens_seen,
            backbone=store.spec.backbone,
            licences=tuple(store.spec.licences),
        ).sealed()


class Histogram(Record):
    """Latents by how often they are active: four bins a decade from 1e-7 to 1."""

    edges: tuple[float, ...]
    """29 shares of the tokens."""
    latents: tuple[int, ...]
    """28 counts. Latents that are never active are in no bin."""


class LayerQuality(Record):
    """What the SAE of one layer is worth, over all patch tokens of its store."""

    r2: float
    """1 − FVU."""
    fvu: float
    """Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖²."""
    l0: float
    """Mean number of latents with z > 0 a token."""
    dead_share: float
    """Latents that no token activates; in protocol spg CLS tokens count as well."""
    almost_dead_share: float | None
    """Active in less than 1 of 100,000 tokens; None where the store has no more of them."""
    dense_share: float
    """Active in more than 1 of 10 tokens."""
    frequencies: Histogram
    r2_prefixes: dict[str, float]
    """Matryoshka prefix p → R² of the first p latents alone; empty without prefixes."""
    tokens_seen: int
    steps: int
    epochs: float


class SaeQuality(Record):
    """quality.json: the figures of each layer."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"files_sha256"})
    kind: Literal["sparse autoencoder quality"] = "sparse autoencoder quality"
    format: Literal[3] = 3
    protocol: str
    layers: dict[str, LayerQuality]
    files_sha256: dict[FileName, Name] = Field(default_factory=dict)
    """Of curve.csv."""


@dataclass(frozen=True)
class SaeRun:
    """A finished stage: one SAE a layer, with dead masks and what they came from."""

    layers: dict[str, SparseAutoencoder]
    dead: dict[str, Tensor]
    """Layer → (C,) bool."""
    record: SaeRecord

    def digest(self) -> str:
        """SHA-256 of the dictionaries and dead masks: all that guides are made with."""
        digest = hashlib.sha256()
        for layer, sae in self.layers.items():
            for tensor in (sae.dictionary.detach(), self.dead[layer].byte()):
                digest.update(f"{layer} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def save(self, path: Path, quality: SaeQuality, curve: str) -> None:
        """Write sae.safetensors, config.json, quality.json and curve.csv as one folder."""
        tensors: dict[str, Tensor] = {}
        for layer, sae in self.layers.items():
            weights = sae.state_dict() | {"dead": self.dead[layer].byte()}
            tensors |= {f"{layer}.{name}": value for name, value in weights.items()}
        with fresh_folder(path) as folder:
            sha256 = save_tensors(folder / "sae.safetensors", tensors)
            record = self.record.model_copy(update={"tensors_sha256": sha256})
            write_record(folder / "config.json", record)
            write_text(folder / CURVE, curve)
            digests = file_digests(folder, CURVE)
            write_record(
                folder / "quality.json", quality.model_copy(update={"files_sha256": digests})
            )

    @classmethod
    def load(cls, path: Path) -> "SaeRun":
        """Read a stage's folder; SpgError if it is missing or damaged."""
        record = read_sae_record(path)
        tensors = load_tensors(path / "sae.safetensors", record.tensors_sha256, WHAT, COMMAND)
        params, layers, dead = record.sae or SaeParams(), {}, {}
        with reading(path, WHAT, COMMAND):
            for layer in record.layers:
                weights = below(tensors, f"{layer}.")
                dead[layer] = weights.pop("dead").bool()
                latents, dim = weights["encoder"].shape
                if dead[layer].shape != (latents,) or params.k > latents:
                    raise ValueError(f"layer {layer} has no dead mask for, or k over, its latents")
                sae = SparseAutoencoder(dim, latents, params.k, activation=params.activation)
                sae.load_state_dict(weights)
                layers[layer] = sae
        return cls(layers, dead, record)


def read_sae_record(folder: Path) -> SaeRecord:
    """config.json of an SAE's folder, or an SpgError."""
    return read_record(folder / "config.json", SaeRecord, WHAT, COMMAND)


def read_quality(folder: Path) -> SaeQuality:
    """quality.json of an SAE's folder, or an SpgError."""
    return read_record(folder / "quality.json", SaeQuality, f"quality of a {WHAT}", COMMAND)

"""What a detector and scores say of themselves: the JSON in their folders."""

from typing import Any, Literal

from pydantic import Field

from spg_pipe.artefacts.files import versions
from spg_pipe.artefacts.record import Record
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.decision.rules import Rule
from spg_pipe.guides.kinds import Guides
from spg_pipe.metrics.tables import seen_in
from spg_pipe.recipe.params import BankParams, Detection, SaeParams
from spg_pipe.recipe.protocol import Protocol
from spg_pipe.store.reader import FeatureStore


class Selection(Record):
    """The part of a dataset that options chose."""

    categories: tuple[str, ...] = ()
    """Those alone; empty: all."""
    limit: int | None = None
    """Images, of …"""
    of: int | None = None
    """… so many."""

    @classmethod
    def of_store(cls, store: FeatureStore) -> "Selection | None":
        """None for a whole dataset."""
        return cls.model_validate(store.selection) if store.selection else None


class Painted(Record):
    """What a set is whose defects are painted."""

    normal_images: int
    categories: tuple[str, ...]


class Auxiliary(Record):
    """The labelled set that guides were made from."""

    dataset: str
    split: str
    images: int
    left_out: int
    """Images without a label, or with a defect and no mask."""
    selection: Selection | None
    synthetic: Painted | None

    @property
    def supervision(self) -> str:
        """What guides of this set were allowed to see."""
        return seen_in(self.synthetic.model_dump() if self.synthetic else {})


class SaeOrigin(Record):
    """The SAEs whose atoms guides are made of."""

    fingerprint: str
    params: SaeParams | None
    """None for axes in the place of learnt atoms (`study`)."""
    tokens_seen: dict[str, int]
    """Layer → tokens."""


class DetectorOrigin(Record):
    """What scores say of the detector that judged."""

    fingerprint: str
    seed: int
    protocol: Protocol
    detection: Detection
    guides: Guides
    auxiliary: Auxiliary
    sae: SaeOrigin


class DetectorRecord(Record):
    """config.json of a detector."""

    kind: Literal["detector"] = "detector"
    format: Literal[2] = 2
    layers: dict[str, tuple[int, int]]
    """Layer → patch grid that its guides were made on."""
    seed: int
    protocol: Protocol
    detection: Detection
    """The feature that judges images by the published rule."""
    guides: Guides
    rule: Rule
    auxiliary: Auxiliary
    store: str
    """Fingerprint of the auxiliary set's store."""
    sae: SaeOrigin
    backbone: BackboneSpec
    """Of single views: never in tiles."""
    licences: tuple[str, ...]
    painted_on: tuple[str, ...]
    """`source_id` of each normal image that the auxiliary set's defects were painted on."""
    fingerprint: str = ""
    versions: dict[str, str]
    tensors_sha256: str = ""

    @property
    def origin(self) -> DetectorOrigin:
        """What scores keep of it."""
        kept = {name: getattr(self, name) for name in DetectorOrigin.model_fields}
        return DetectorOrigin(**kept)


class BankOrigin(Record):
    """The memory banks that judged, alone or with a detector."""

    params: BankParams
    normals: str
    """Fingerprint of the normal images' tokens."""


class ScoresRecord(Record):
    """config.json of a scores folder."""

    kind: Literal["scores"] = "scores"
    format: Literal[2] = 2
    dataset: str
    split: str
    selection: Selection | None
    images: int
    image_size: int
    """S: side of the maps, pixels."""
    backbone: BackboneSpec
    layers: tuple[str, ...]
    """Names of the tokens that were judged."""
    store: str
    """Fingerprint of the target's store."""
    method: str
    """In words: kind of guides and rule, or a baseline's name."""
    supervision: str
    """What the method was allowed to see besides the images that it judges."""
    log_odds: bool
    """Patches hold log odds or another value of any range; else probabilities."""
    seed: int | None = None
    """None for what needs no training."""
    auxiliary: str = ""
    """The labelled dataset behind it, if any."""
    detector: DetectorOrigin | None = None
    rule: Rule | None = None
    """Of the detector."""
    bank: BankOrigin | None = None
    made_from: dict[str, str] = Field(default_factory=dict)
    """Of a baseline: fingerprints of its inputs."""
    licences: tuple[str, ...]
    fingerprint: str = ""
    versions: dict[str, str]
    files_sha256: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of_store(cls, store: FeatureStore, **judged: Any) -> "ScoresRecord":
        """Scores of a store's images; `judged` are the fields that say by what."""
        return cls(
            dataset=store.spec.dataset,
            split=store.spec.split,
            selection=Selection.of_store(store),
            images=len(store),
            image_size=store.image_size,
            backbone=store.spec.backbone,
            layers=store.layers,
            store=store.fingerprint,
            versions=versions(),
            **judged,
        )

    @property
    def method_protocol(self) -> str:
        """The method's protocol; `none` where no detector took part."""
        return self.detector.protocol.name if self.detector else "none"

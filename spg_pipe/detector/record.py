"""What a detector and scores say of themselves: the JSON in their folders."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from spg_pipe.artefacts.files import versions
from spg_pipe.artefacts.record import Count, FileName, LayerName, Name, Record, Seed, Size
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.decision.rules import Rule
from spg_pipe.guides.kinds import Guides
from spg_pipe.metrics.tables import seen_in
from spg_pipe.recipe.params import BankParams, Detection, SaeParams
from spg_pipe.recipe.protocol import Protocol
from spg_pipe.store.format import Selection
from spg_pipe.store.reader import FeatureStore


class Painted(Record):
    """What a set is whose defects are painted."""

    normal_images: Count
    categories: tuple[str, ...]


class Auxiliary(Record):
    """The labelled set that guides were made from."""

    dataset: Name
    split: Name
    images: Count
    left_out: Count
    """Images without a label, or with a defect and no mask."""
    selection: Selection | None
    synthetic: Painted | None

    @property
    def supervision(self) -> str:
        """What guides of this set were allowed to see."""
        return seen_in(self.synthetic.model_dump() if self.synthetic else {})


class SaeOrigin(Record):
    """The SAEs whose atoms guides are made of."""

    fingerprint: Name
    params: SaeParams | None
    """None for axes in the place of learnt atoms (`study`)."""
    tokens_seen: dict[LayerName, Count]
    """Layer → tokens."""


class DetectorOrigin(Record):
    """What scores say of the detector that judged."""

    fingerprint: Name
    seed: Seed
    protocol: Protocol
    detection: Detection
    guides: Guides
    auxiliary: Auxiliary
    sae: SaeOrigin


class DetectorRecord(Record):
    """config.json of a detector."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"files_sha256"})
    kind: Literal["detector"] = "detector"
    format: Literal[3] = 3
    layers: dict[LayerName, tuple[Size, Size]]
    """Layer → patch grid that its guides were made on."""
    seed: Seed
    protocol: Protocol
    detection: Detection
    """The feature of an image that has guides of its own."""
    guides: Guides
    rule: Rule
    auxiliary: Auxiliary
    store: Name
    """Fingerprint of the auxiliary set's store."""
    sae: SaeOrigin
    backbone: BackboneSpec
    """Of single views: never in tiles."""
    licences: tuple[str, ...]
    painted_on: tuple[Name, ...]
    """`source_id` of each normal image that the auxiliary set's defects were painted on."""
    fingerprint: Name = ""
    versions: dict[Name, Name]
    tensors_sha256: Name = ""
    files_sha256: dict[FileName, Name] = Field(default_factory=dict)
    """Of curve.csv, where the guides were trained."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.backbone.tiles is not None:
            raise ValueError("the backbone is in tiles, expected single views")
        self.backbone.require_layers(self.layers)
        return self

    @property
    def origin(self) -> DetectorOrigin:
        """What scores keep of it."""
        kept = {name: getattr(self, name) for name in DetectorOrigin.model_fields}
        return DetectorOrigin(**kept)


class BankOrigin(Record):
    """The memory banks that judged, alone or with a detector."""

    params: BankParams
    normals: Name
    """Fingerprint of the normal images' tokens."""


class ScoresRecord(Record):
    """config.json of a scores folder."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"ignored"})
    kind: Literal["scores"] = "scores"
    format: Literal[3] = 3
    dataset: Name
    split: Name
    selection: Selection | None
    images: Count
    image_size: Size
    """S: side of the maps, pixels."""
    backbone: BackboneSpec
    layers: Annotated[tuple[LayerName, ...], Field(min_length=1)]
    """Names of the tokens that were judged."""
    store: Name
    """Fingerprint of the target's store."""
    method: Name
    """In words: kind of guides and rule, or a baseline's name."""
    supervision: str
    """What the method was allowed to see besides the images that it judges."""
    log_odds: bool
    """Patches hold log odds or another value of any range; else probabilities."""
    seed: Seed | None = None
    """None for what needs no training."""
    auxiliary: Name = ""
    """The labelled dataset behind it, if any."""
    detector: DetectorOrigin | None = None
    rule: Rule | None = None
    """Of the detector."""
    bank: BankOrigin | None = None
    ignored: Name | None = None
    """Of the masks that say what of the images is ignored, their digest; None: nothing is."""
    made_from: dict[Name, Name] = Field(default_factory=dict)
    """Of a baseline: fingerprints of its inputs."""
    licences: tuple[str, ...]
    fingerprint: Name = ""
    versions: dict[Name, Name]
    files_sha256: dict[FileName, Name] = Field(default_factory=dict)

    @classmethod
    def of_store(cls, store: FeatureStore, **judged: Any) -> "ScoresRecord":
        """Scores of a store's images; `judged` are the fields that say by what."""
        return cls(
            dataset=store.spec.dataset,
            split=store.spec.split,
            selection=Selection.of_manifest(store.selection),
            images=len(store),
            image_size=store.image_size,
            backbone=store.spec.backbone,
            layers=store.layers,
            store=store.fingerprint,
            versions=versions(),
            **judged,
        )

    def content(self) -> dict[str, object]:
        """Without a word of what is ignored where nothing is."""
        content = super().content()
        return content if self.ignored else {k: v for k, v in content.items() if k != "ignored"}

    @property
    def method_protocol(self) -> str:
        """The method's protocol; `none` where no detector took part."""
        return self.detector.protocol.name if self.detector else "none"

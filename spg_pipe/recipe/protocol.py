"""The two method protocols, resolved into explicit settings (docs/method.md §5).

`spg` reproduces the published code with its quirks; `default` mends what is a defect. Nothing
below this module asks for a protocol's name: it is given the settings.
"""

from dataclasses import asdict, dataclass
from typing import Literal

ProtocolName = Literal["default", "spg"]


@dataclass(frozen=True)
class Protocol:
    """Settings that differ between the protocols; they enter artefacts and fingerprints."""

    name: ProtocolName
    dead_counter: Literal["tokens", "steps"]
    """A latent's age counts tokens, or steps against a threshold made of the batch's size."""
    dead_mask_counts_cls: bool
    """The dead mask also counts CLS tokens, although the SAE was not trained on them."""
    ema_warmup: bool
    """decay_t = min(0.999, (1 + t)/(10 + t)) instead of 0.999 from the start."""
    single_image_dice_by_row: bool
    """A batch of one image computes dice for each row, as the published `squeeze` does."""
    mean_token_of_first_image: bool
    """`mean_tokens` uses the first image's mean patch token for the whole batch."""
    exif_of_own_images: bool
    """EXIF orientation is honoured in layout `folder` and by `predict`; benchmarks ignore it."""

    def to_dict(self) -> dict[str, object]:
        """Plain values for an artefact's config."""
        return asdict(self)


_PROTOCOLS: dict[str, Protocol] = {
    "default": Protocol("default", "tokens", False, True, False, False, True),
    "spg": Protocol("spg", "steps", True, False, True, True, False),
}


def protocol(name: ProtocolName) -> Protocol:
    """The settings of a protocol, by name."""
    return _PROTOCOLS[name]

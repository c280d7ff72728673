"""What is said of a detector's own images, each judged by one that has not learned from it."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from spg_pipe.artefacts.digests import read_beside
from spg_pipe.artefacts.reading import reading
from spg_pipe.artefacts.record import Count, FigureOrNaN, FileName, Name, Record, Seed, read_record
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN
from spg_pipe.detector.out_of_fold import OutOfFold
from spg_pipe.detector.record import DetectorRecord
from spg_pipe.errors import one_line
from spg_pipe.guides.contrast import FOLDS
from spg_pipe.store.reader import FeatureStore

if TYPE_CHECKING:
    import pandas as pd

ESTIMATE, TABLE = "held-out.json", "held-out.csv"
FALSE_ALARM, MISSED = "false alarm", "missed"
_SHOWN = 10
"""Images of each kind that are named."""


class HeldOut(Record):
    """held-out.json: what can be expected of new images like these."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"files_sha256"})
    kind: Literal["held-out estimate"] = "held-out estimate"
    format: Literal[1] = 1
    detector: Name
    """Fingerprint."""
    dataset: Name
    supervision: Name
    """Whether its defects are real or painted."""
    backbone: Name
    """With its size."""
    seed: Seed
    method_protocol: Name
    metrics_protocol: Literal["exact"] = "exact"
    folds: Count = FOLDS
    normal: Count
    """Images that were judged."""
    anomalous: Count
    not_judged: Count
    """Without a label, or without enough others to learn from."""
    image_auroc: FigureOrNaN
    pixel_ap: FigureOrNaN
    """Of maps at a quarter of the size."""
    false_alarms: Count
    """Normal images with a score above 0."""
    missed: Count
    """Anomalous images with a score of 0 or below."""
    files_sha256: dict[FileName, Name] = Field(default_factory=dict)
    """Of held-out.csv."""

    @classmethod
    def of(cls, detector: DetectorRecord, judged: OutOfFold, store: FeatureStore) -> "HeldOut":
        """The estimate of a detector and its store."""
        labels, seen = store.array("label"), ~np.isnan(judged.scores)
        normal, anomalous = seen & (labels == LABEL_NORMAL), seen & (labels == LABEL_ANOMALOUS)
        return cls(
            detector=detector.fingerprint,
            dataset=detector.auxiliary.dataset,
            supervision=detector.auxiliary.supervision,
            backbone=detector.backbone.seen_at,
            seed=detector.seed,
            method_protocol=detector.protocol.name,
            normal=int(normal.sum()),
            anomalous=int(anomalous.sum()),
            not_judged=int((~normal & ~anomalous).sum()),
            image_auroc=judged.image_auroc,
            pixel_ap=judged.pixel_ap,
            false_alarms=int((normal & (judged.scores > 0)).sum()),
            missed=int((anomalous & (judged.scores <= 0)).sum()),
        )

    def in_words(self, table: "pd.DataFrame") -> list[str]:
        """For a person; `table` is that of `table_of`."""
        if not self.normal or not self.anomalous:
            return [
                "Held out: too few images of a kind to judge some by a detector made from the "
                "others. Look at new images before you rely on it."
            ]
        lines = [
            f"Held out: image AUROC {self.image_auroc:.3f}, pixel AP {self.pixel_ap:.3f} "
            f"({self.dataset}, {self.supervision}; {self.backbone}, seed {self.seed}; protocols "
            f"{self.method_protocol} and {self.metrics_protocol}, maps at a quarter of the size).",
            f"Each fifth of the images was judged by a detector made from the others. At its zero "
            f"it calls {self.false_alarms} of {self.normal} normal images anomalous, and "
            f"{self.missed} of {self.anomalous} defects normal.",
        ]
        if self.not_judged:
            lines.append(f"{self.not_judged} images were not judged.")
        for kind, rising in ((FALSE_ALARM, False), (MISSED, True)):
            wrong = table[table["wrong"] == kind].sort_values("score", ascending=rising)
            for row in wrong.head(_SHOWN).itertuples():
                lines.append(one_line(f"  {kind:11} {row.score:9.4f}  {row.path}"))
            if len(wrong) > _SHOWN:
                lines.append(f"  and {len(wrong) - _SHOWN} more of these")
        if self.false_alarms or self.missed:
            lines.append("Look at these: they may be labelled wrongly, or be hard to tell.")
        return lines


def table_of(store: FeatureStore, judged: OutOfFold, contents: np.ndarray) -> "pd.DataFrame":
    """A row an image: path, category, defect, label, fold, score, decision, what is wrong, and
    the SHA-256 (n,) of its file."""
    table = store.table[["path", "category", "defect", "label"]].copy()
    names = {LABEL_NORMAL: "normal", LABEL_ANOMALOUS: "anomalous", LABEL_UNKNOWN: ""}
    table["label"] = table["label"].map(names)
    table["fold"], table["score"] = judged.folds, judged.scores
    decision = np.where(judged.scores > 0, "anomalous", "normal")
    table["decision"] = np.where(np.isnan(judged.scores), "", decision)
    wrong = {("normal", "anomalous"): FALSE_ALARM, ("anomalous", "normal"): MISSED}
    pairs = zip(table["label"], table["decision"], strict=True)
    table["wrong"] = [wrong.get(pair, "") for pair in pairs]
    return table.assign(sha256=contents)


def learned_from(detector: Path, fingerprint: str) -> set[str]:
    """SHA-256 of the images that `fit` made a detector from; none where their table is not there.

    An `SpgError` if it is damaged.
    """
    import pandas as pd

    for out in detector.resolve().parents[:4]:  # artifacts/detectors/<set>/<detector>
        if not (out / ESTIMATE).is_file():
            continue
        held = read_record(out / ESTIMATE, HeldOut, "held-out estimate", "spg-pipe fit")
        if held.detector == fingerprint:
            table = read_beside(out, TABLE, held.files_sha256, "held-out table", "spg-pipe fit")
            with reading(out / TABLE, "held-out table", "spg-pipe fit"):
                return set(pd.read_csv(io.BytesIO(table or b""), usecols=["sha256"])["sha256"])
    return set()

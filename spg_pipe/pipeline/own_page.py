"""The page of `predict --report`: a gallery of own images, made of a run's lines and pictures."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from spg_pipe.datasets.walk import REPORT
from spg_pipe.decision.calibration import Limits
from spg_pipe.errors import SpgError, counted
from spg_pipe.metrics.operating import above
from spg_pipe.predict.judge import JudgedImage
from spg_pipe.predict.result import Failure, Result
from spg_pipe.predict.run import link_below, results_of
from spg_pipe.predict.shown import Shown, files_of, stem_of
from spg_pipe.report.direction import SHARES
from spg_pipe.report.gallery import IMAGES, Gallery, GalleryImage, Threshold, write_gallery
from spg_pipe.report.page import environment, per_cent, signed
from spg_pipe.report.pictures import Pictures, draw

_MOST_FAILURES = 200
"""That are listed; predictions.jsonl has them all."""


@dataclass(frozen=True)
class OwnPage:
    """What the page is made of, besides the run's lines."""

    out: Path
    """Where the run's results are."""
    scale: tuple[float, float]
    """Values of a map that get the darkest and the brightest colour."""
    limits: Callable[[str], Limits]
    """The thresholds of a group of images."""
    notes: tuple[str, ...]
    """Sentences below the title."""
    plan: Callable[[Collection[str]], None]
    """Is told files before they are written; see `ResultFolder.plan`."""
    shown: Shown = field(default_factory=Shown)

    def draw(self, judged: JudgedImage, result: Result) -> None:
        """Write the pictures of an image, if it is among the highest so far. From any thread.

        An `SpgError` if a link is in the way, an OSError if they cannot be written.
        """
        if not self.shown.wants(result.score):
            return
        files = files_of(result.path)
        for file in sorted(files):
            if link := link_below(self.out, file):
                raise SpgError(f"{link} is a link; a picture would be written there. Remove it.")
        self.plan(files)
        folder = self.out / REPORT / IMAGES
        folder.mkdir(parents=True, exist_ok=True)
        limit, marked = result.pixel_threshold, None
        if limit is not None and result.regions:
            marked = above(judged.anomaly_map, limit).astype("uint8") * 255
        else:  # of another image that had this name
            (folder / f"{stem_of(result.path)}-mask.png").unlink(missing_ok=True)
        draw(
            folder,
            stem_of(result.path),
            judged.pixels,
            judged.anomaly_map,
            self.scale,
            mask=marked,
        )

    def write(self) -> Path:
        """Write the pages, when all lines and pictures are there."""
        found = _Found(self)
        low, high = (f"map value {end:.3g}" for end in self.scale)
        groups = {group: self.limits(group) for group, of in found.counts.items() if _judged(of)}
        thresholds = {
            group: Threshold(limits.image.value, limits.image.says.rstrip("."))
            for group, limits in groups.items()
            if limits.image
        }
        notes, decides = list(self.notes), bool(thresholds)
        if hidden := sum(map(len, found.others.values())):
            notes.append(
                f"The {counted(len(found.images), 'image')} with the highest scores have pictures "
                f"and pages; the histogram and its counts have all, {hidden:,} more."
            )
        gallery = Gallery(
            title="Predictions",
            thresholds=thresholds,
            low=low,
            high=high,
            notes=notes,
            grouped="Group",
            outlined="regions",
            before=_macros().overview(found.counts, decides, found.failures, found.unlisted),
            others=found.others,
            normals={group: limits.scores for group, limits in groups.items()},
        )
        return write_gallery(self.out / REPORT, gallery, found.images)


class _Found:
    """What the lines of a run say, read once."""

    def __init__(self, page: OwnPage) -> None:
        names, image = page.shown.names(), _macros().image
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        """Group → how many are anomalous, normal, undecided or failed."""
        self.others: dict[str, list[float]] = defaultdict(list)
        self.failures: list[Failure] = []
        self.unlisted = 0
        shown: dict[str, GalleryImage] = {}
        for result in results_of(page.out):
            if isinstance(result, Failure):
                self.counts[result.group]["failed"] += 1
                listed = len(self.failures) < _MOST_FAILURES
                self.failures += [result] * listed
                self.unlisted += not listed
                continue
            self.counts[result.group][result.decision or "undecided"] += 1
            if result.path not in names or result.path in shown:
                self.others[result.group].append(result.score)
                continue
            why = result.files.explanation
            shown[result.path] = GalleryImage(
                name=result.path,
                group=result.group,
                defect="",
                label="unknown",
                score=result.score,
                pictures=_pictures(page.out / REPORT / IMAGES, result),
                size=(result.height, result.width),
                facts=list(_facts(result)),
                why=image(result, f"../../{why}" if why else ""),
            )
        self.images = sorted(shown.values(), key=lambda image: -image.score)


def _macros() -> Any:
    """What the page says besides its gallery, as markup."""
    return environment().get_template("own.html.jinja").module


def _judged(counts: Counter[str]) -> bool:
    return counts.total() > counts["failed"]


def _pictures(folder: Path, result: Result) -> Pictures:
    """The files of an image that an earlier run may have drawn."""
    stem = stem_of(result.path)
    with Image.open(folder / f"{stem}.jpg") as photograph:
        size = (photograph.height, photograph.width)
    return Pictures(stem, size, mask=bool(result.regions))


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    """Rows of an image's page: what it is, and its value in words."""
    if result.p_value is not None:
        yield (
            "p-value",
            f"{result.p_value:.3g}: the share of the calibration's normal images that score as "
            "high or higher, this image counted as one of them. It is not the probability that "
            "the image is normal.",
        )
    if result.deviation is not None:
        yield (
            "Beside your normal images",
            f"{signed(result.deviation, 1)} standard deviations from their mean; "
            f"{result.normals_above} of {result.normals} score as high or higher",
        )
    if result.among_normals:
        yield "Note", "This image is itself one of the normal images that judge."
    place = f"row {result.peak_row}, column {result.peak_column}"
    yield "Highest value of the map", f"{result.peak:.3f} at {place}"
    if result.ignored_share:
        yield "Ignored", f"{per_cent(result.ignored_share)} of the image"
    for name, value in result.parts.items():
        yield SHARES.get(name, name), signed(value)
    if result.supervision:
        yield "Judged by", result.supervision

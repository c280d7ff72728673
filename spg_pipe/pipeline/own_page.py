"""The page of `predict --report`: a gallery of own images, made of a run's lines and pictures."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spg_pipe.artefacts.files import link_below
from spg_pipe.datasets.walk import REPORT
from spg_pipe.decision.calibration import Limits
from spg_pipe.errors import SpgError, counted
from spg_pipe.metrics.operating import above
from spg_pipe.predict.judge import JudgedImage
from spg_pipe.predict.result import Failure, Result
from spg_pipe.predict.run import ResultFolder, results_of
from spg_pipe.predict.shown import Shown, files_of, stem_of
from spg_pipe.report.direction import facts_of_parts
from spg_pipe.report.gallery import IMAGES, Gallery, GalleryImage, Threshold, write_gallery
from spg_pipe.report.page import environment, per_cent, signed, size_of
from spg_pipe.report.pictures import ImageFiles, write_pictures

_MOST_FAILURES = 200
"""That are listed; predictions.jsonl has them all."""


@dataclass(frozen=True)
class OwnPage:
    """What the page is made of, besides the run's lines."""

    run: ResultFolder
    """Where the run's results are."""
    shown: Shown
    scale: tuple[float, float]
    """Values of a map that get the darkest and the brightest colour."""
    limits: Callable[[str], Limits]
    """The thresholds of a group of images."""
    notes: tuple[str, ...]
    """Sentences below the title."""

    def draw(self, judged: JudgedImage, result: Result) -> None:
        """Write the pictures of an image, if it is among the highest so far. From any thread.

        An `SpgError` if a link is in the way, an OSError if they cannot be written.
        """
        if not self.shown.wants(result.score):
            return
        files = files_of(result.path)
        for file in sorted(files):
            if link := link_below(self.run.out, file):
                raise SpgError(f"{link} is a link; a picture would be written there. Remove it.")
        self.run.plan(files)
        folder = self.run.out / REPORT / IMAGES
        folder.mkdir(parents=True, exist_ok=True)
        limit, marked = result.pixel_threshold, None
        if limit is not None and result.regions:
            marked = above(judged.anomaly_map, limit).astype("uint8") * 255
        else:  # of another image that had this name
            (folder / f"{stem_of(result.path)}-mask.png").unlink(missing_ok=True)
        stem, pixels = stem_of(result.path), judged.pixels
        write_pictures(folder, stem, pixels, judged.anomaly_map, self.scale, mask=marked)

    def write(self) -> Path:
        """Write the pages, when all lines and pictures are there."""
        lines = _read(self)
        low, high = (f"map value {end:.3g}" for end in self.scale)
        groups = {group: self.limits(group) for group, of in lines.counts.items() if _judged(of)}
        thresholds = {
            group: Threshold(limits.image.value, limits.image.says.rstrip("."))
            for group, limits in groups.items()
            if limits.image
        }
        notes = list(self.notes)
        if hidden := sum(map(len, lines.others.values())):
            notes.append(
                f"The {counted(len(lines.images), 'image')} with the highest scores have pictures "
                f"and pages; the histogram and its counts have all, {hidden:,} more."
            )
        gallery = Gallery(
            title="Predictions",
            thresholds=thresholds,
            low=low,
            high=high,
            notes=notes,
            outlined="regions",
            before=_macros().overview(lines.counts, bool(thresholds), lines.failures),
            others=lines.others,
            normals={group: limits.scores for group, limits in groups.items()},
        )
        return write_gallery(self.run.out / REPORT, gallery, lines.images.values())


class _Lines(NamedTuple):
    """What the lines of a run say."""

    counts: dict[str, Counter[str]]
    """Group → how many are anomalous, normal, undecided or failed."""
    images: dict[str, GalleryImage]
    """Name → what is shown."""
    others: dict[str, list[float]]
    """Group → scores of the images that are not."""
    failures: list[Failure]
    """The first `_MOST_FAILURES`."""


def _read(page: OwnPage) -> _Lines:
    lines = _Lines(defaultdict(Counter), {}, defaultdict(list), [])
    names, image = page.shown.names(), _macros().image
    for result in results_of(page.run.out):
        if isinstance(result, Failure):
            lines.counts[result.group]["failed"] += 1
            if len(lines.failures) < _MOST_FAILURES:
                lines.failures.append(result)
            continue
        lines.counts[result.group][result.decision or "undecided"] += 1
        if result.path not in names or result.path in lines.images:
            lines.others[result.group].append(result.score)
            continue
        why = result.files.explanation
        lines.images[result.path] = GalleryImage(
            name=result.path,
            group=result.group,
            defect="",
            label="unknown",
            score=result.score,
            files=_files(page.run.out / REPORT / IMAGES, result),
            size=(result.height, result.width),
            facts=list(_facts(result)),
            why=image(result, f"../../{why}" if why else ""),
        )
    return lines


def _macros() -> Any:
    """What the page says besides its gallery, as markup."""
    return environment().get_template("own.html.jinja").module


def _judged(counts: Counter[str]) -> bool:
    return counts.total() > counts["failed"]


def _files(folder: Path, result: Result) -> ImageFiles:
    """The files of an image that an earlier run may have drawn."""
    stem = stem_of(result.path)
    width, height = size_of(folder / f"{stem}.jpg")
    return ImageFiles(stem, (height, width), mask=bool(result.regions))


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
    peak = f"{result.peak:.3f} at row {result.peak_row}, column {result.peak_column}"
    yield "Highest value of the map", peak
    if result.ignored_share:
        yield "Ignored", f"{per_cent(result.ignored_share)} of the image"
    yield from facts_of_parts(result.score, result.parts)
    if result.supervision:
        yield "Judged by", result.supervision

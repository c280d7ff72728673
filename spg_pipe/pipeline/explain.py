"""`explain --split`: why a store's images have their scores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch

from spg_pipe.artefacts.files import fresh_folder, write_bytes
from spg_pipe.datasets.walk import EXPLAINED, EXPLANATIONS
from spg_pipe.decision.heat_maps import eight_bit, jpeg
from spg_pipe.decision.maps import anomaly_maps, shown_range
from spg_pipe.decision.rules import Rule
from spg_pipe.detector.judge import judge
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import BATCH_IMAGES
from spg_pipe.errors import SpgError, counted, naming, told
from spg_pipe.explain.explanation import Explanation, explain
from spg_pipe.explain.lines import line_of
from spg_pipe.explain.picture import QUALITY, draw
from spg_pipe.images.reading import read_image
from spg_pipe.pipeline.checked_store import checked_store, named_input
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.targets import detectors_for
from spg_pipe.predict.finish import picture_path
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Dataset
from spg_pipe.recipe.places import Place
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens, ordered_batches, sources_of

PICTURES = 8
"""Of a store's images, those with the highest scores, unless told otherwise."""

Listener = Callable[[str], None]
"""Is given each line as it is written."""


class Explained(NamedTuple):
    """One image of a store, and how to draw it."""

    path: str
    """As lines name it."""
    explanation: Explanation
    number: int
    """Of the image in the explanation."""
    pixels: Callable[[], tuple[np.ndarray, np.ndarray] | None]
    """Photograph (H, W, 3) uint8 and finished map (h, w) float32; None where the photograph cannot
    be read."""

    def written(self, lines: IO[str], atoms: int | None) -> str:
        """Its line, which is added to the file."""
        line = line_of(self.explanation, self.number, self.path, atoms)
        lines.write(f"{line}\n")
        return line


def explain_split(
    run: RecipeRun,
    target: str,
    *,
    detector: Path | None,
    store: Place | None,
    atoms: int | None,
    pictures: int | None,
    listener: Listener,
) -> list[Path]:
    """Write why a store's images have their scores, for all seeds; no backbone is needed.

    `target` is as for `score`; `atoms` and `pictures` (by default `PICTURES`) are as for `Ask`.
    Returns the paths explanations/<…>/explanations.jsonl.
    """
    dataset = find_dataset(run.params, target)
    features = checked_store(run, dataset, store)
    detectors, options = detectors_for(run, dataset, detector)
    written, drawn = [], PICTURES if pictures is None else pictures
    for each in detectors:
        each.check_backbone(features.spec.backbone, f"The store {features.path}")
        given = named_input("store", store, run.paths.store(dataset), features.fingerprint)
        aux, seed = each.record.auxiliary.dataset, each.record.seed
        if aux == dataset.name:
            run.console.say(f"Note: the detector was trained on {aux} itself.")
        given |= named_input("detector", detector, run.paths.detector(aux, seed), each.fingerprint)
        folder = run.paths.explanations(aux, dataset, seed, given)
        shown = shown_range(log_odds=each.rule(options).rule == "additive")
        judged = _Judged(each, dataset, features, each.rule(options), choose_device(run.device))
        with (
            fresh_folder(folder) as fresh,
            (fresh / EXPLANATIONS).open("w", encoding="ascii", newline="\n") as lines,
            run.console.progress(f"explain {dataset.name}") as update,
        ):
            scores, undrawn, faults = [], 0, list[OSError]()
            for done, item in enumerate(judged.all(), 1):
                listener(item.written(lines, atoms))
                scores.append(float(item.explanation.scores[item.number]))
                update(done, len(features))
            for item in judged.some(np.argsort(scores)[len(scores) - min(drawn, len(scores)) :]):
                undrawn += not _draw(item, fresh, shown, faults)
        if undrawn:
            gone = f"{counted(undrawn, 'photograph')} could not be read from {dataset.root}"
            run.console.say(f"Note: {gone}: there is no picture of them.")
        if faults:
            said = f"has all lines, but {counted(len(faults), 'picture')} could not be written"
            raise SpgError(f"{folder / EXPLANATIONS} {said}. {told(faults[0])}")
        run.console.say(f"Explanations of {dataset.name} → {folder / EXPLANATIONS}")
        written.append(folder / EXPLANATIONS)
    return written


def _draw(item: Explained, folder: Path, shown: tuple[float, float], faults: list[OSError]) -> bool:
    """Write an image's picture, or note why not; False if its photograph cannot be read."""
    if (pixels := item.pixels()) is None:
        return False
    file = picture_path(item.path, EXPLAINED)
    picture = jpeg(draw(*pixels, item.explanation, item.number, shown), QUALITY)
    try:
        with naming(file, folder):
            write_bytes(folder / file, picture)
    except OSError as error:  # it costs no line
        faults.append(error)
    return True


@dataclass(frozen=True)
class _Judged:
    """A store's images as a detector judges them."""

    detector: Detector
    dataset: Dataset
    store: FeatureStore
    rule: Rule
    device: str

    def all(self) -> Iterator[Explained]:
        """In the store's order."""
        sources = sources_of(self.store, self.device, "none")
        for images, tokens in ordered_batches(sources, BATCH_IMAGES):
            yield from self._batch(images, tokens)

    def some(self, images: np.ndarray) -> Iterator[Explained]:
        """Images (n,), read again one by one."""
        for row in images.reshape(-1, 1):
            tokens = {name: image_tokens(self.store, name, row) for name in self.store.layers}
            yield from self._batch(row, {k: v.to(self.device) for k, v in tokens.items()})

    @cached_property
    def _paths(self) -> list[str]:
        paths: list[str] = self.store.array("path").tolist()
        return paths

    def _batch(self, images: np.ndarray, tokens: dict[str, torch.Tensor]) -> Iterator[Explained]:
        spec = self.store.spec
        grids = {name: shape.grid for name, shape in spec.layers.items()}
        judged = judge(self.detector, tokens, grids, spec.backbone, self.rule)
        explanation = explain(self.detector, tokens, grids, spec.backbone, self.rule, judged)
        for number, row in enumerate(images.tolist()):
            path = self._paths[row]
            patches = {name: values[number : number + 1] for name, values in judged.patches.items()}
            pixels = partial(_pixels, self.dataset.root / path, self.store, patches, explanation)
            yield Explained(path, explanation, number, pixels)


def _pixels(
    path: Path, store: FeatureStore, patches: dict[str, torch.Tensor], explanation: Explanation
) -> tuple[np.ndarray, np.ndarray] | None:
    """Photograph and map; None if the file is gone or damaged since the store was made."""
    try:
        photograph = read_image(path, exif=store.spec.exif, white=store.spec.white)
    except SpgError:
        return None
    maps = anomaly_maps(patches, store.image_size, log_odds=explanation.log_odds)
    return eight_bit(photograph), maps[0]

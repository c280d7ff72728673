"""How fast this machine is: the recipe's stages on made-up images (docs/scale.md, "Planning").

The backbone sees a few made-up images. The other stages run over stores of its tokens, repeated and
moved a little, in two sizes, by the code that the commands run.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spg_pipe.backbones.base import LayerTokens
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.datasets.build import build_manifest
from spg_pipe.detector.evaluate import Evaluation, evaluate_scores
from spg_pipe.detector.make import DetectorPlan, make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Scores, score_store
from spg_pipe.pipeline.costs import Cost, idle_memory, measured
from spg_pipe.pipeline.features import load_backbone
from spg_pipe.pipeline.plan import COUNTS, Line, Rates, Setting, StageRates, kept_bytes, shard_bytes
from spg_pipe.pipeline.run import RecipeRun, image_size
from spg_pipe.recipe.data import Dataset, Direction
from spg_pipe.recipe.machine import choose_device, cpu_workers
from spg_pipe.recipe.params import Params
from spg_pipe.recipe.paths import Paths
from spg_pipe.recipe.protocol import protocol
from spg_pipe.report.build import build_report
from spg_pipe.sae.quality import measure
from spg_pipe.sae.run import LayerQuality, SaeQuality, SaeRecord, SaeRun
from spg_pipe.sae.train import CURVE, Callbacks, Fit, batches
from spg_pipe.store.extract import Extraction, extract
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource

R = TypeVar("R")
SIZES = {"few": 16, "many": 64}
"""Images of the two stores; the larger has a whole shard."""
_MANY = "many"
_SEED = 0
_SECONDS = 12.0
"""Of forward passes; and about as many of an SAE's steps, of all layers."""
_FEWEST, _MOST = 4, 32
"""Images that the backbone sees."""
_STEPS = 60
"""Of an SAE that are timed, at most."""


class _Repeated:
    """A backbone's tokens of a few images again, each time moved a little: it costs nothing."""

    def __init__(self, store: FeatureStore) -> None:
        self.spec: BackboneSpec = store.spec.backbone
        self._calls, rows = count(), np.arange(len(store))
        self._tokens = {
            layer: LayerTokens(
                torch.from_numpy(store.tokens(layer, rows)).float(),
                torch.from_numpy(store.cls(layer, rows)).float()[:, None],
                shape.grid,
            )
            for layer, shape in store.spec.layers.items()
        }

    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        """As `Backbone`."""
        generator, output = torch.Generator().manual_seed(next(self._calls)), {}
        for layer, (patches, prefix, grid) in self._tokens.items():
            rows = torch.randint(len(patches), (len(images),), generator=generator)
            noise = torch.randn(len(images), *patches.shape[1:], generator=generator)
            output[layer] = LayerTokens(patches[rows] * (1 + noise / 10), prefix[rows], grid)
        return output


class Probe:
    """One measuring of a recipe, in a folder of its own.

    Made-up images have a side of so many pixels; the folder is empty, and the caller removes it. By
    `rates` an `SpgError` as of the recipe's stages.
    """

    def __init__(self, run: RecipeRun, side: int, folder: Path) -> None:
        self._start_seconds, self._start_memory = time.process_time(), idle_memory()
        self._run, self._side, self._folder = run, side, folder
        self._device = choose_device(run.device)
        self._clock = time.process_time if self._device == "cpu" else time.perf_counter
        rows = [
            Dataset(name=name, layout="folder", root=folder / name, split="all", licence="made up")
            for name in SIZES
        ]
        self._params = _recipe(run.params, rows, folder / "artifacts")
        self._paths = Paths(self._params, image_size(run.params))
        self._how = Extraction(run.params.extract.batch_images, dtype=run.params.extract.dtype)

    def rates(self) -> tuple[Rates, Setting]:
        """Measure everything."""
        extracting, loading, real = self._extracted()
        self._stores = self._repeated(real)
        setting, (row, mask) = self._setting(), self._bytes_of_an_image()
        held = shard_bytes(setting)
        stages = {
            "extract": StageRates(
                Line(loading, extracting.seconds / len(real)),
                Line(max(0.0, extracting.mebibytes * 2**20 - held * real.spec.shard_images), held),
                kept_bytes(setting, "extract", row, mask),
                self._disk(lambda name: [Path(self._paths.store(name))]),
            )
        }
        steps, stages["train-sae"], saes = self._trained()
        detectors, guides = self._over_both(lambda name: self._detector(name, saes[name]))
        scores, scoring = self._over_both(lambda name: self._scores(name, detectors[name]))
        _, judging = self._over_both(lambda name: self._metrics(name, scores[name]))
        _, counting = self._over_both(lambda name: self._evaluated(name, scores[name], COUNTS))
        _, drawing = self._over_both(self._report)
        written: dict[str, tuple[Mapping[str, Cost], Callable[[str], Iterable[Path]]]] = {
            "train-guides": (guides, lambda name: [self._paths.detector(name, _SEED)]),
            "score": (scoring, lambda name: [self._paths.scores(name, name, _SEED)]),
            "evaluate": (judging, self._metrics_files),
            COUNTS: (counting, self._metrics_files),
            "report": (drawing, lambda name: [self._folder / f"report-{name}"]),
        }
        for stage, (spent, files) in written.items():
            kept = kept_bytes(setting, stage, row, mask)
            beyond = max(0.0, spent[_MANY].mebibytes * 2**20 - kept * SIZES[_MANY])
            # Sorting holds the pixels of a category, here of all images.
            memory = Line(0, beyond / SIZES[_MANY]) if stage == "evaluate" else Line(beyond, 0)
            few, many = ((SIZES[name], spent[name].seconds) for name in SIZES)
            seconds = Line.through(few, many)
            # Guides and curves are as large whatever the images.
            grows = stage in ("score", "report")
            disk = self._disk(files) if grows else Line(_size(files(_MANY)), 0)
            stages[stage] = StageRates(seconds, memory, kept, disk)
        return Rates(self._start_seconds, self._start_memory, stages, steps), setting

    def _spending(self) -> AbstractContextManager[Cost]:
        """What a block takes of one core, on a GPU of a clock, and of memory."""
        return measured(idle_memory(), self._clock)

    def _over_both(self, work: Callable[[str], R]) -> tuple[dict[str, R], dict[str, Cost]]:
        """Do something for both stores: the results, and what each took."""
        results, spent = dict[str, R](), dict[str, Cost]()
        for name in SIZES:
            with self._spending() as spent[name]:
                results[name] = work(name)
        return results, spent

    def _extracted(self) -> tuple[Cost, float, FeatureStore]:
        """Made-up images through the backbone; what loading it took."""
        with self._spending() as loading:
            backbone = load_backbone(self._run)
        size = backbone.spec.preprocess.size
        blank = torch.zeros(1, 3, size, size, device=self._device)
        backbone(blank)  # the first pass prepares
        with self._spending() as one, torch.inference_mode():
            backbone(blank)
        images = int(np.clip(_SECONDS / max(one.seconds, 1e-3), _FEWEST, _MOST)) // 2 * 2
        _write_pictures(self._folder / "real", images, self._side)
        row = Dataset(name="real", layout="folder", root=self._folder / "real", split="all")
        how = Extraction(self._how.batch_images, images // 2, self._how.dtype)
        threads, place = cpu_workers(self._run.workers), self._folder / "real.zarr"
        manifest = build_manifest(row)
        loaded = idle_memory() - self._start_memory
        with self._spending() as spent:
            store = extract(manifest, backbone, place, how, workers=threads, device=self._device)
        spent.seconds -= one.seconds  # one more image, which asks for the grids
        spent.mebibytes += loaded / 2**20
        return spent, loading.seconds + one.seconds, store

    def _repeated(self, real: FeatureStore) -> dict[str, FeatureStore]:
        """Both stores, of links to the pictures."""
        backbone, stores = _Repeated(real), {}
        for name, images in SIZES.items():
            root = self._folder / name
            for number in range(images):
                # Every second one is anomalous, as the pictures are.
                for file, link in _names(number % len(real) // 2 * 2 + number % 2, number):
                    (root / link).parent.mkdir(parents=True, exist_ok=True)
                    os.link(self._folder / "real" / file, root / link)
            manifest = build_manifest(self._params.dataset(name))
            stores[name] = extract(manifest, backbone, self._paths.store(name), self._how)
        return stores

    def _setting(self) -> Setting:
        spec, guides = self._stores[_MANY].spec, self._params.guides
        epochs = guides.epochs if guides.kind == "trained" else 0
        size, params = spec.backbone.preprocess.size, self._params
        return Setting(spec, size, params.sae, epochs, params.metrics, self._side)

    def _bytes_of_an_image(self) -> tuple[float, float]:
        """In memory: of a row of the table, and of a mask as it is kept."""
        store = self._stores[_MANY]
        row = float(store.table.memory_usage(deep=True).sum()) / len(store)
        masks = sum(e.bytes for e in store.entries if e.name.startswith("mask/"))
        return row, masks / len(store) + 50

    def _trained(self) -> tuple[dict[str, float], StageRates, dict[str, SaeRun]]:
        """Seconds of a step by layer; of the pass that judges; SAEs that say they are of each."""
        store, params = self._stores[_MANY], self._params.sae
        rules, steps = protocol(self._params.method.protocol), {}
        fits, qualities, dead = dict[str, Fit](), dict[str, LayerQuality](), dict[str, Tensor]()
        judging, memory = 0.0, 0.0
        for layer in store.layers:
            source = TokenSource(store, layer, device=self._device, cache=self._run.cache)
            with self._spending() as whole:
                fit = Fit(store, layer, params, _SEED, rules.dead_counter, self._device)
                steps[layer] = self._steps(fit, source)
                fits[layer] = fit
                with self._spending() as pass_over:
                    how = {"count_cls": rules.dead_mask_counts_cls, "prefixes": params.prefixes}
                    found = measure(fit.trainer.sae, source, norm=params.input_norm, **how)  # type: ignore[arg-type]
            judging, memory = judging + pass_over.seconds, max(memory, whole.mebibytes * 2**20)
            seen = {"tokens_seen": fit.tokens, "steps": fit.step}
            qualities[layer] = found.record(**seen, epochs=fit.tokens / fit.epoch_tokens)
            dead[layer] = torch.zeros_like(found.dead)
        layers = {layer: fit.trainer.sae.cpu() for layer, fit in fits.items()}
        quality = SaeQuality(protocol=rules.name, layers=qualities)
        curve = ",".join(CURVE) + "\n" + "".join(fit.curve for fit in fits.values())
        saes = {}
        for name in SIZES:
            seen = {layer: fit.tokens for layer, fit in fits.items()}
            record = SaeRecord.of(self._stores[name], params, rules, _SEED, seen)
            saes[name] = SaeRun(layers=layers, dead=dead, record=record)
            saes[name].save(self._paths.sae(name, _SEED), quality, curve)
        disk = Line(_size([self._paths.sae(_MANY, _SEED)]), 0)
        rates = StageRates(Line(0, judging / len(store)), Line(memory, 0), 0, disk)
        return steps, rates, saes

    def _steps(self, fit: Fit, source: TokenSource) -> float:
        """Seconds of a step, after two that prepare."""
        stream, share = batches(fit, source), _SECONDS / len(source.store.layers)
        for x in islice(stream, 2):
            fit.take(x.float(), Callbacks())
        began, steps = self._clock(), 0
        while self._clock() - began < share and steps < _STEPS:
            for x in islice(stream, 5):
                fit.take(x.float(), Callbacks())
            steps += 5
        return (self._clock() - began) / steps

    def _detector(self, name: str, saes: SaeRun) -> Detector:
        plan, cache = DetectorPlan.of(self._params, saes, _SEED), self._run.cache
        detector, _ = make_detector(self._stores[name], plan, device=self._device, cache=cache)
        detector.save(self._paths.detector(name, _SEED))
        return detector

    def _scores(self, name: str, detector: Detector) -> Scores:
        path = self._paths.scores(name, name, _SEED)
        how = self._params.score
        return score_store(detector, self._stores[name], path, score=how, device=self._device)

    def _metrics(self, name: str, scores: Scores) -> None:
        self._evaluated(name, scores).save(self._paths.metrics(name, name, _SEED))

    def _evaluated(self, name: str, scores: Scores, stage: str = "evaluate") -> Evaluation:
        how = self._params.metrics
        how = how if stage != COUNTS else how.model_copy(update={"accumulator": "histogram"})
        original = how.resolution == "original"
        manifest = build_manifest(self._params.dataset(name)) if original else None
        return evaluate_scores(scores, self._stores[name], how, manifest=manifest)

    def _metrics_files(self, name: str) -> list[Path]:
        path = self._paths.metrics(name, name, _SEED)
        return list(path.parent.rglob(f"{path.stem}*"))

    def _report(self, name: str) -> None:
        way = Direction.model_construct(aux=name, target=name)
        params = self._params.model_copy(update={"directions": (way,), "auxiliaries": (name,)})
        files = self._paths.metrics(name, name, _SEED), self._paths.scores(name, name, _SEED)
        out = self._folder / f"report-{name}"
        build_report(params, self._paths, out, {(name, name, _SEED): files})

    def _disk(self, files: Callable[[str], Iterable[Path]]) -> Line:
        """Bytes of the files and folders of both stores."""
        points = [(images, float(_size(files(name)))) for name, images in SIZES.items()]
        return Line.through(points[0], points[1])


def _recipe(params: Params, rows: list[Dataset], artifacts: Path) -> Params:
    """The recipe over the made-up sets, with one seed."""
    none = dict.fromkeys(("directions", "demo_sets", "synthetic_sets", "published"), ())
    own = {"artifacts": artifacts, "stores": None, "datasets": tuple(rows), "seeds": (_SEED,)}
    extraction = params.extract.model_copy(update={"tiles": {}})
    update = {"auxiliaries": tuple(SIZES), "extract": extraction}
    return params.model_copy(update={**none, **own, **update})


def _names(file: int, link: int) -> list[tuple[Path, Path]]:
    """Of a picture and, if it is anomalous, its mask: names below a folder of them."""
    if file % 2 == 0:
        return [(Path(f"part/good/{file:03d}.png"), Path(f"part/good/{link:03d}.png"))]
    return [
        (Path(f"part/{kind}/{file:03d}{end}.png"), Path(f"part/{kind}/{link:03d}{end}.png"))
        for kind, end in (("dent", ""), ("ground_truth/dent", "_mask"))
    ]


def _write_pictures(root: Path, images: int, side: int) -> None:
    """Smooth colours with grain, as large in a file as a photograph; every second one has a mask of
    three blobs."""
    rng = np.random.default_rng(_SEED)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
        picture = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        picture = np.clip(picture + rng.integers(-6, 7, (side, side, 1)), 0, 255).astype(np.uint8)
        mask = np.zeros((side, side), np.uint8)
        for y, x in rng.integers(0, max(1, side * 3 // 4), (3, 2)):
            mask[y : y + side // 8 + 1, x : x + side // 6 + 1] = 255
        for (name, _), pixels in zip(_names(number, number), (picture, mask), strict=False):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name, compress_level=1)


def _size(paths: Iterable[Path]) -> int:
    """Bytes of files, and of all files of folders."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())

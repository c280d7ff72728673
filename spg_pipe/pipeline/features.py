"""Raw folders → manifests → feature stores."""

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spg_pipe import backbones
from spg_pipe.backbones.base import Backbone
from spg_pipe.backbones.precision import with_precision
from spg_pipe.backbones.tiling import tiled
from spg_pipe.datasets.manifest import Manifest, skipped_notes
from spg_pipe.datasets.paint.demo import write_demo
from spg_pipe.errors import NotThereError, SpgError, counted
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import require_tracked, scan
from spg_pipe.pipeline.run import RecipeRun, image_size, require_set
from spg_pipe.recipe.machine import choose_device, cpu_workers
from spg_pipe.recipe.params import Dataset
from spg_pipe.recipe.places import Place, from_root
from spg_pipe.store import extract as writing
from spg_pipe.store.begin import begun
from spg_pipe.store.claims import ranges_of, refuse_link
from spg_pipe.store.compute import Progress, inputs_at_once
from spg_pipe.store.finish import finish_store
from spg_pipe.store.format import StoreSpec
from spg_pipe.store.masks import mask_notes
from spg_pipe.store.reader import FeatureStore, selection_note


def write_demo_sets(run: RecipeRun, name: str | None = None) -> None:
    """Generate the recipe's built-in demo sets, or one of them, where they are not there yet."""
    require_set(run.params, "demo_sets", name)
    for demo in run.params.demo_sets:
        if name in (None, demo.name):
            write_demo(demo.name, demo.root, seed=demo.seed)


def prepare(run: RecipeRun, dataset: Dataset, *, tracked: bool = False) -> Path:
    """Raw folder → Manifest; `tracked` by DVC, as `require_tracked` says."""
    if tracked:
        require_tracked(dataset.root)
    manifest = scan(run, dataset, skip_bad=run.params.extract.skip_bad, tell=True)
    path = run.paths.manifest(dataset)
    manifest.save(path)
    run.console.say(f"{dataset.name}/{dataset.split}: {len(manifest)} images → {path}")
    return path


def skipped_in(paths: Sequence[Place]) -> dict[str, list[dict[str, str]]]:
    """Of each manifest or store that left out images: their paths, and why."""
    left_out = {}
    for path in paths:
        if isinstance(path, Path) and not path.is_dir():
            holder: Manifest | StoreSpec = Manifest.load(path, path.parent)
        else:
            holder = FeatureStore(path).spec
        if holder.skipped:
            left_out[str(path)] = [{"path": b.path, "reason": b.reason} for b in holder.skipped]
    return left_out


def load_backbone(run: RecipeRun) -> Backbone:
    """The recipe's backbone on the run's device."""
    params, device, say = run.params, choose_device(run.device), run.console.announce
    network = backbones.load_backbone(
        params.backbone.alias,
        image_size=image_size(params),
        layers=params.backbone.layers,
        norm=params.backbone.norm,
        protocol=params.method.protocol,
        weights=params.backbone.weights,
        device=device,
        say=say,
    )
    return with_precision(network, params.backbone.precision, device, say)


def with_tiles(run: RecipeRun, datasets: Sequence[Dataset], sides: Sequence[int]) -> RecipeRun:
    """The run with these datasets' images cut into tiles at these sides, in pixels."""
    tiles = run.params.extract.tiles | {row.name: tuple(sides) for row in datasets}
    section = run.params.extract.model_copy(update={"tiles": tiles})
    return run.with_params(run.params.model_copy(update={"extract": section}))


def extract(
    run: RecipeRun,
    dataset: Dataset,
    *,
    replace: bool = False,
    from_manifest: bool = False,
    out: Place | None = None,
    backbone: Backbone | None = None,
    limit: int | None = None,
    categories: Sequence[str] | None = None,
) -> Place:
    """Manifest → FeatureStore.

    Parameters
    ----------
    replace : bool
        Replace a store of other content in the same place, if that is a folder.
    from_manifest : bool
        Use the prepared manifest (a dependency of the DVC stage), not the folder as it is now.
    out, backbone : optional
        Another place, and a backbone that is already loaded, for several datasets.
    limit, categories : optional
        At most so many images, spread over all kinds, and only of these categories. The store of
        a part of the dataset gets its own place, and says what it is.

    An `SpgError` for missing images, categories or weights, and as `_place` and
    `store.extract.extract`.
    """
    if run.cluster is None:
        # First of all, because missing weights are the likeliest reason to stop.
        backbone = _tiled(run, dataset, backbone or load_backbone(run))
    chosen = (limit, categories)
    manifest = _manifest(run, dataset, *chosen, prepared=from_manifest)
    path = _place(run, dataset, manifest, out)
    if replace and isinstance(path, str):
        raise SpgError(
            f"--replace removes folders alone. Remove {path} with the tool of its file system, or "
            "name another place."
        )
    with run.console.progress(f"extract {dataset.name}") as update:
        if backbone is None or run.cluster is not None:
            store = _extract_in_cluster(run, dataset, manifest, path, replace, update)
        else:
            store = writing.extract(
                manifest,
                backbone,
                path,
                _how(run),
                replace=replace,
                workers=cpu_workers(run.workers),
                device=choose_device(run.device),
                progress=update,
            )
    run.console.say(f"{dataset.name}: {len(store)} images → {path}")
    _say_notes(run, store, manifest, of_files=from_manifest)
    return path


def extract_shards(
    run: RecipeRun,
    dataset: Dataset,
    shards: tuple[int, int],
    *,
    out: Place | None = None,
    limit: int | None = None,
    categories: Sequence[str] | None = None,
) -> writing.SomeShards:
    """Manifest → the shards from the first number to before the second of a FeatureStore.

    The manifest is the one that `prepare` wrote, if there is one and a whole dataset of the recipe
    is meant: else each process reads all images for their hashes. An `SpgError` as of `extract`.
    """
    prepared, whole = run.paths.manifest(dataset), limit is None and categories is None
    by_file = whole and dataset in run.params.datasets and prepared.is_file()
    if by_file:
        run.console.say(f"The images are those of {prepared}; `spg-pipe prepare` looks again.")
    manifest = _manifest(run, dataset, limit, categories, prepared=by_file)
    path = _place(run, dataset, manifest, out)
    work = _shared(run, dataset, manifest, path)
    with run.console.progress(f"extract {dataset.name}") as update:
        done = work.compute(*shards, progress=update)
    for those, words in ((done.there, "were there"), (done.held, "are left to other processes")):
        if those:
            run.console.say(f"Shards {ranges_of(those)} {words}.")
    spec, of = begun(path), counted(work.spec.shards, "shard")
    then = f"When all are there: `spg-pipe finish {shlex.quote(str(path))}`"
    if spec is not None and spec.complete:
        then = "The store is finished."
    run.console.say(f"{dataset.name}: computed {len(done.written)} of {of} → {path}. {then}")
    return done


BEGIN = -1
"""The unit of a `ShardJob` that begins the store, and gives back its shards, if any is missing."""


@dataclass(frozen=True)
class ShardJob:
    """The shards of one store, for the workers of a cluster: `Job` of a number."""

    run: RecipeRun
    dataset: Dataset
    manifest: Manifest
    path: Place
    replace: bool

    def open(self) -> Callable[[int], list[int]]:
        """Load the backbone. A unit is `BEGIN` or a shard, which is given back if another process
        holds it."""
        work = _shared(self.run, self.dataset, self.manifest, self.path)

        def unit(shard: int) -> list[int]:
            if shard == BEGIN:
                return list(work.begin(replace=self.replace))
            return work.compute(shard, shard + 1).held

        return unit


def _shared(
    run: RecipeRun, dataset: Dataset, manifest: Manifest, path: Place
) -> writing.SharedExtract:
    """The extract of which this process computes some shards, with the backbone loaded."""
    backbone = _tiled(run, dataset, load_backbone(run))
    threads, device = cpu_workers(run.workers), choose_device(run.device)
    how = _how(run)
    return writing.SharedExtract(manifest, backbone, path, how, workers=threads, device=device)


def _extract_in_cluster(
    run: RecipeRun,
    dataset: Dataset,
    manifest: Manifest,
    path: Place,
    replace: bool,
    update: Progress,
) -> FeatureStore:
    """`store.extract.extract` by the workers of a cluster, which see the same paths."""
    with run.workers_of_cluster() as workers:
        if workers is None:
            raise ValueError("a run without a cluster")
        seen = dataclasses.replace(manifest, root=manifest.root.resolve())
        job = ShardJob(run.for_workers(), dataset, seen, from_root(path), replace)
        with workers.serving(job) as results:
            ((_, shards),) = results([BEGIN])
            spec = begun(path)
            if spec is None:
                raise SpgError(
                    f"A worker began {path}, and it is not seen here. Workers and this process "
                    "need one file system, with the same paths."
                )
            done = 0
            while shards:
                held: list[int] = []
                for shard, left in results(shards):
                    held += left
                    done += 0 if left else len(spec.shard_rows(shard))
                    update(done, spec.images)
                time.sleep(1 if held else 0)
                shards = held
    return finish_store(path)


def _how(run: RecipeRun) -> writing.Extraction:
    params = run.params.extract
    return writing.Extraction(params.batch_images, dtype=params.dtype, compressor=params.compressor)


def _tiled(run: RecipeRun, dataset: Dataset, backbone: Backbone) -> Backbone:
    """The backbone, over tiles if the dataset's images are cut into tiles."""
    params, device = run.params.extract, choose_device(run.device)
    if sides := params.tiles.get(dataset.name):
        at_once = inputs_at_once(backbone.spec, params.batch_images, device)
        return tiled(backbone, sides, at_once=at_once)
    return backbone


def _manifest(
    run: RecipeRun,
    dataset: Dataset,
    limit: int | None,
    categories: Sequence[str] | None,
    *,
    prepared: bool,
) -> Manifest:
    """As `prepare` wrote it, or of the folder as it is now."""
    if prepared:
        return Manifest.load(run.paths.manifest(dataset), root=dataset.root)
    skip_bad = run.params.extract.skip_bad
    return scan(run, dataset, limit=limit, categories=categories, skip_bad=skip_bad, tell=True)


def stored(run: RecipeRun, dataset: Dataset) -> FeatureStore:
    """The store of a dataset, checked; made or finished where it is not there.

    One that was made otherwise is replaced only of a folder that the recipe does not list, which
    may have got or lost images since; else a `NotThereError` names the command.
    """
    in_folder = isinstance(run.paths.store(dataset), Path)
    replace = in_folder and dataset not in run.params.datasets
    try:
        return checked_store(run, dataset)
    except NotThereError as error:
        if "--replace" in error.command and not replace:
            raise
        return FeatureStore(extract(run, dataset, replace=replace))


def _place(run: RecipeRun, dataset: Dataset, manifest: Manifest, out: Place | None) -> Place:
    """Where the store goes; neither among its images, nor a part in the place of the whole."""
    if isinstance(out, Path) and out.resolve().is_relative_to(dataset.root.resolve()):
        raise SpgError(
            f"--out {out} lies among the images of {dataset.name} ({dataset.root}), where the "
            "store would be taken for images. Name a place outside."
        )
    path = out or run.paths.store(dataset, manifest.selection)
    if isinstance(path, Path):
        refuse_link(path)  # workers are given what it means
    if manifest.selection and from_root(path) == from_root(run.paths.store(dataset)):
        raise SpgError(
            f"{path} is the place of the whole dataset {dataset.name}, not of a part of it "
            "(--limit, --categories). Name another place with --out, or leave the option out."
        )
    return path


def _say_notes(run: RecipeRun, store: FeatureStore, manifest: Manifest, *, of_files: bool) -> None:
    """What a person should know of a new store; what was skipped unless that was said."""
    notes = list(mask_notes(store))
    if manifest.selection:
        use = f"use it with --store {shlex.quote(str(store.path))}"
        notes.insert(0, f"{selection_note(store)}; {use}")
    if of_files:
        notes += skipped_notes(manifest.skipped)
    for note in notes:
        run.console.say(f"  note: {note}")

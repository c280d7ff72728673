"""Images → frozen backbone → feature store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from spg_pipe.artefacts.files import versions
from spg_pipe.backbones.base import Backbone
from spg_pipe.backbones.precision import computed_by
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError, counted, told
from spg_pipe.recipe.places import Place
from spg_pipe.store.compute import ImageCount, Progress, ShardComputer, lost_regions
from spg_pipe.store.elsewhere import ShardsElsewhere
from spg_pipe.store.finish import finish_store
from spg_pipe.store.format import LayerShape, StoreSpec
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.writer import ClaimedShards, StoreWriter

SomeShards = ClaimedShards | ShardsElsewhere
"""Those of a store that this process computes."""
SHARD_IMAGES = 64
"""Images a shard file, 100 to 400 MB of a ViT's tokens: few files, and little to redo."""


@dataclass(frozen=True)
class Extraction:
    """How tokens are computed and stored."""

    batch_images: int = 8
    """Images a forward pass. A GPU without enough memory for them takes them in halves."""
    shard_images: int = SHARD_IMAGES
    """Images a shard file. Of tiled images fewer, so that files and memory keep their size."""
    dtype: Literal["float16", "float32"] = "float16"
    compressor: Literal["none", "zstd"] = "none"


def extract(
    manifest: Manifest,
    backbone: Backbone,
    path: Place,
    how: Extraction = Extraction(),
    *,
    replace: bool = False,
    workers: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FeatureStore:
    """Compute the tokens of a manifest's images into a store.

    A store that is already there is finished if it was begun with the same inputs, and returned
    at once if it is complete. Batches never cross a shard's border, so a resumed run computes
    the same batches as an unbroken one.

    On a CPU every worker takes a batch from the files to its tokens, each on a core of its own:
    decoding and forward passes then share the cores without waiting for each other, and the result
    does not depend on the number of workers. On a GPU workers decode ahead of the forward passes.

    Parameters
    ----------
    path : Path or str
        The store's folder, or a URL (`SharedExtract`).
    replace : bool
        Replace a store of other content in the same place, if that is a folder.
    workers : int
        Threads that decode and, on a CPU, compute.
    progress : callable (images done, images in all), optional

    Raises
    ------
    SpgError
        For an image that cannot be read, another store in the place, or another process that
        writes there.
    """
    if isinstance(path, str):
        shared = SharedExtract(manifest, backbone, path, how, workers=workers, device=device)
        shared.compute(0, shared.spec.shards, progress)
        return finish_store(path)
    spec = _spec(manifest, backbone, how, device)
    masks = partial(lost_regions, manifest, spec.backbone.preprocess.size)
    with (
        _told(path, "the same command goes on with the shards that are finished, if there are any"),
        StoreWriter(path, spec, manifest, masks, replace=replace) as writer,
    ):
        if not writer.up_to_date:
            missing = writer.missing_shards
            done = spec.images - sum(len(spec.shard_rows(shard)) for shard in missing)
            count = ImageCount(done, spec.images, progress)
            run = ShardComputer(spec, manifest, backbone, device)
            run.run(missing, writer.write_shard, workers, count)
            writer.finish()
    return FeatureStore(path)


class SharedExtract:
    """An extract of which each process computes some shards, on any number of machines that share
    the file system, or an object store; `store.finish.finish_store` ends it.

    Parameters as of `extract`, which raises as `begin` and `compute` do.
    """

    def __init__(
        self,
        manifest: Manifest,
        backbone: Backbone,
        path: Place,
        how: Extraction = Extraction(),
        *,
        workers: int = 2,
        device: str = "cpu",
    ) -> None:
        self.spec = _spec(manifest, backbone, how, device)
        self.path, self._manifest, self._workers = path, manifest, workers
        self._computer = ShardComputer(self.spec, manifest, backbone, device)

    def begin(self, *, replace: bool = False) -> range:
        """Begin the store or go on with one, as `extract` does; the shards that are then to be
        computed or, where they are there, checked: none of a store that is complete."""
        if isinstance(self.path, str):
            missing = ShardsElsewhere(self.path, self.spec).begin(self._manifest)
            return range(self.spec.shards if missing else 0)
        masks = partial(lost_regions, self._manifest, self.spec.backbone.preprocess.size)
        how = {"replace": replace, "check": False}
        with (
            _told(self.path, "then give the same command again"),
            StoreWriter(self.path, self.spec, self._manifest, masks, **how) as writer,
        ):
            return range(0 if writer.up_to_date else self.spec.shards)

    def compute(self, first: int, end: int, progress: Progress | None = None) -> SomeShards:
        """Compute the shards first ≤ n < end of the store, which is begun if nobody has.

        Shards that others hold are left to them, those that are whole stay. Raises SpgError if
        there are no such shards, too.
        """
        spec, path = self.spec, self.path
        if not 0 <= first < end <= spec.shards:
            raise SpgError(
                f"--shards {first}:{end}: {path} has {counted(spec.shards, 'shard')} "
                f"({spec.shard_images} images each). Expected A:B with 0 ≤ A < B ≤ {spec.shards}."
            )
        with (
            _told(path, "the same command goes on with the shards that are not finished"),
            _shards(path, spec) as claims,
        ):
            if claims.begin(self._manifest):
                images = sum(len(spec.shard_rows(shard)) for shard in range(first, end))
                count = ImageCount(0, images, progress)
                claimed = claims.claimed(range(first, end))
                self._computer.run(claimed, claims.write_shard, self._workers, count)
            else:
                claims.there += range(first, end)
            return claims


def _shards(path: Place, spec: StoreSpec) -> SomeShards:
    return ClaimedShards(path, spec) if isinstance(path, Path) else ShardsElsewhere(path, spec)


@contextmanager
def _told(path: Place, then: str) -> Iterator[None]:
    """One message for what the system refuses, with what to do next."""
    try:
        yield
    except OSError as error:
        raise SpgError(
            f"The store cannot be written. {told(error, path)} --out names another place; {then}."
        ) from error


def _spec(manifest: Manifest, backbone: Backbone, how: Extraction, device: str) -> StoreSpec:
    """The attributes of the store; an `SpgError` if there are no images."""
    if len(manifest) == 0:
        raise SpgError(f"Dataset {manifest.dataset!r} has no images.")
    spec = spec_of(manifest, backbone.spec, how, _layer_shapes(backbone, device))
    return spec.model_copy(update={"computed": computed_by(backbone.spec.precision, device)})


def spec_of(
    manifest: Manifest, backbone: BackboneSpec, how: Extraction, layers: dict[str, LayerShape]
) -> StoreSpec:
    """The attributes of a store of these images."""
    inputs = backbone.inputs_per_image  # a tiled image holds as many tokens as so many others
    return StoreSpec(
        dataset=manifest.dataset,
        split=manifest.split,
        manifest=manifest.fingerprint(),
        images=len(manifest),
        backbone=backbone,
        layers=layers,
        shard_images=max(1, min(how.shard_images // inputs, len(manifest))),
        batch_images=max(1, how.batch_images // inputs),
        dtype=how.dtype,
        exif=manifest.exif,
        white=manifest.white,
        compressor=how.compressor,
        licences=(*manifest.licences, backbone.licence),
        notes=manifest.notes,
        skipped=manifest.skipped,
        selection=dict(manifest.selection),
        sources=manifest.own_sources,
        layout=manifest.layout,
        versions=versions(),
    ).sealed()


def _layer_shapes(backbone: Backbone, device: str) -> dict[str, LayerShape]:
    """Grids and widths, asked from the backbone itself: token counts are data."""
    size, prefix = backbone.spec.preprocess.size, (backbone.spec.prefix,)
    output = backbone(torch.zeros(1, 3, size, size, device=device))
    return {
        layer: LayerShape(grid=value.grid, dim=value.patches.shape[-1], prefix=prefix)
        for layer, value in output.items()
    }

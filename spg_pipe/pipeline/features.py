"""Raw folders → manifests → feature stores."""

from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.console import choose_device, cpu_workers
from spg_pipe.errors import SpgError
from spg_pipe.find import scan
from spg_pipe.params import Dataset, Params
from spg_pipe.session import Session, image_size

if TYPE_CHECKING:
    from spg_pipe.backbones.base import Backbone


def write_demo_sets(session: Session) -> None:
    """Generate the recipe's built-in demo sets where they are not there yet."""
    for demo in session.params.demo_sets:
        write_demo_set(session.params, demo.name)


def write_demo_set(params: Params, name: str) -> Path:
    """Generate a built-in demo set of the recipe."""
    from spg_pipe.datasets.demo import write_demo

    for demo in params.demo_sets:
        if demo.name == name:
            write_demo(name, demo.root, seed=demo.seed)
            return demo.root
    known = ", ".join(demo.name for demo in params.demo_sets) or "none"
    raise SpgError(f"Demo set {name!r} is not among the recipe's demo_sets: {known}.")


def prepare(session: Session, dataset: Dataset) -> Path:
    """Raw folder → Manifest."""
    manifest = scan(session, dataset)
    path = session.place(
        session.paths.manifest(dataset.name, dataset.split),
        manifest.fingerprint(),
        own=dataset in session.params.datasets,
    )
    manifest.save(path)
    session.console.say(f"{dataset.name}/{dataset.split}: {len(manifest)} images → {path}")
    for note in manifest.notes:
        session.console.say(f"  note: {note}")
    return path


def load_backbone(session: Session) -> "Backbone":
    """The recipe's backbone on the session's device."""
    from spg_pipe.backbones import load_backbone as load

    params = session.params
    return load(
        params.backbone.alias,
        image_size=image_size(params),
        layers=params.backbone.layers,
        norm=params.backbone.norm,
        protocol=params.method.protocol,
        weights=params.backbone.weights,
        device=choose_device(session.device),
    )


def extract(
    session: Session,
    dataset: Dataset,
    *,
    replace: bool = False,
    from_manifest: bool = False,
    out: Path | None = None,
    backbone: "Backbone | None" = None,
) -> Path:
    """Manifest → FeatureStore.

    Parameters
    ----------
    replace : bool
        Replace a store of other content in the same place.
    from_manifest : bool
        Use the prepared manifest (the DVC stage, whose dependency it is) instead of looking at
        the folder again.
    out : Path, optional
        Another place.
    backbone : Backbone, optional
        Already loaded, for several datasets.
    """
    from spg_pipe.datasets.manifest import Manifest
    from spg_pipe.store.extract import extract as run
    from spg_pipe.store.masks import mask_notes

    # First of all, because missing weights are the likeliest reason to stop.
    backbone = backbone or load_backbone(session)
    if from_manifest:
        path = session.paths.manifest(dataset.name, dataset.split)
        manifest = Manifest.load(path, root=dataset.root)
    else:
        manifest = scan(session, dataset)
    params = session.params
    own = dataset in params.datasets
    place = session.paths.store(dataset.name if own else f"{dataset.name}-{dataset.split}")
    place = out or session.place(
        place, backbone.spec.to_dict(), params.extract, manifest.fingerprint(), own=own
    )
    with session.console.progress(f"extract {dataset.name}") as update:
        store = run(
            manifest,
            backbone,
            place,
            batch_images=params.extract.batch_images,
            shard_images=params.extract.shard_images,
            dtype=params.extract.dtype,
            compressor=params.extract.compressor,
            replace=replace,
            workers=cpu_workers(session.workers),
            device=choose_device(session.device),
            progress=update,
        )
    session.console.say(f"{dataset.name}: {len(store)} images → {place}")
    for note in mask_notes(store):
        session.console.say(f"  note: {note}")
    return place

"""The store of a dataset, checked: it is at its path and fits, or an error says what to do."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel

from spg_pipe.backbones.load import resolve
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.backbones.weights import weights_from_file
from spg_pipe.datasets.build import list_images
from spg_pipe.datasets.layouts.catalogue import honours_exif
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import NotThereError, SpgError
from spg_pipe.pipeline.datasets import scan, split_name
from spg_pipe.pipeline.run import RecipeRun, image_size
from spg_pipe.recipe.params import Dataset, Params, Section
from spg_pipe.recipe.places import Place, from_root
from spg_pipe.recipe.protocol import protocol
from spg_pipe.store.files import is_there
from spg_pipe.store.reader import FeatureStore, selection_note

Pairs = Mapping[str, tuple[object, object]]
"""Full name of a setting or an input → its value as wanted, and as an artefact holds it."""


def checked_store(
    run: RecipeRun, dataset: Dataset | str, given: Place | None = None
) -> FeatureStore:
    """The store of a dataset, which may be one of the recipe's by name, or that of `--store`.

    A `NotThereError` if there is none, or it was made from other settings, images or weights; an
    `SpgError` if it is damaged, or the named one is of another dataset or split.
    """
    if isinstance(dataset, str):
        dataset = run.params.dataset(dataset)
    if given is not None:
        store = FeatureStore(given)
        held = f"{store.spec.dataset}/{store.spec.split}"
        wanted = f"{dataset.name}/{dataset.split}"
        if held != wanted:
            raise SpgError(f"{given} holds {held}, not {wanted}. Name that, or another store.")
        if store.selection:
            run.console.say(f"Note: {given} is a part of {wanted}: {selection_note(store)}.")
        return store
    path = run.paths.store(dataset)
    command = f"extract --split {split_name(run.params, dataset)}"
    if not is_there(path):
        gone = "" if dataset.root.exists() else f" Its folder, {dataset.root}, is not here."
        raise refused(f"{absent(run, path)}{gone}", command)
    store = FeatureStore(path)
    if faults := _store_faults(run, dataset, store):
        raise refused(made_otherwise(path, faults), f"{command} --replace")
    run.console.detail(f"store {path}")
    return store


def _store_faults(run: RecipeRun, dataset: Dataset, store: FeatureStore) -> list[str]:
    params, spec = run.params, store.spec
    exif_of_own_images = protocol(params.method.protocol).exif_of_own_images
    tiles, sides = spec.backbone.tiles, sorted(params.extract.tiles.get(dataset.name, ()))
    faults = differences(
        {
            "dataset": (dataset.name, spec.dataset),
            "split": (dataset.split, spec.split),
            "part of the dataset": ({}, store.selection),
            "EXIF orientation": (honours_exif(dataset.layout, exif_of_own_images), spec.exif),
            "extract.dtype": (params.extract.dtype, spec.dtype),
            f"extract.tiles.{dataset.name}": (sides, sorted(tiles.sides) if tiles else []),
        }
    )
    faults += backbone_differences(spec.backbone, params)
    return faults or _image_faults(run, dataset, store)


def _image_faults(run: RecipeRun, dataset: Dataset, store: FeatureStore) -> list[str]:
    """Whether images came, went or changed since extract, without hashing the recipe's again."""
    if not dataset.root.is_dir():
        return []
    bad = [image for image in store.spec.skipped if image.unchanged(dataset.root)]
    left_out = [image.path for image in bad]
    names = [name for name in list_images(dataset) if name not in left_out]
    held = store.array("path").tolist()
    if other := sorted(set(held) ^ set(names)):
        return [f"the images in {dataset.root} are others ({other[0]})"]
    if held != names:
        return [f"labels or order of the images in {dataset.root} have changed"]
    prepared = run.paths.manifest(dataset)
    if dataset not in run.params.datasets:
        manifest = scan(run, dataset, leave_out=bad)  # the names alone say little
    elif prepared.is_file():
        manifest = Manifest.load(prepared, dataset.root).without(left_out)
    else:
        return []
    older = manifest.table["path"].tolist() != names
    if older or manifest.fingerprint() == store.spec.manifest:
        return []
    return [f"images or masks in {dataset.root} have changed"]


def backbone_differences(spec: BackboneSpec, params: Params) -> list[str]:
    """In what an artefact's backbone is not the one that a recipe names.

    A protocol changes tokens, too: CLIP's position embedding, DINOv2's norm, SigLIP's stand-in for
    CLS (docs/method.md §5). Local weights count by their content, as long as the file is here.
    """
    recipe, published = params.backbone, params.method.protocol == "spg"
    info, view = resolve(recipe.alias), spec.untiled
    named = ("alias", "norm", "pos_embed", "prefix", "precision")
    held = {name: getattr(view, name) for name in named}
    held |= {"image_size": view.preprocess.size, "layers": list(view.layers)}
    wanted = held | {"alias": info.alias, "image_size": image_size(params)}
    wanted["precision"] = recipe.precision
    wanted["layers"] = list(recipe.layers or info.layers) or held["layers"]
    if recipe.norm is not None:
        wanted["norm"] = recipe.norm
    elif spec.family == "timm-vit" and "dinov2" in spec.model:
        wanted["norm"] = "pre" if published or "imgfocus" in spec.alias else "post"
    if spec.family == "open_clip":
        wanted["pos_embed"] = "bilinear" if published else "native"
    if spec.family == "timm-vit" and "siglip" in spec.model:
        wanted["prefix"] = "zeros" if published else "mean"
    weights, local = recipe.weights, spec.weights.startswith("file: ")
    if weights is not None and weights.is_file():
        stat = weights.stat()
        wanted["weights"] = _sha256(weights, stat.st_size, stat.st_mtime_ns)
        held["weights"] = spec.weights_sha256
    elif weights is not None or local:  # scoring needs no weights: they may be gone since
        wanted["weights"] = weights and f"file: {weights.name}"
        held["weights"] = spec.weights
    return differences({"backbone": (wanted, held)})


@lru_cache(maxsize=8)
def _sha256(weights: Path, _size: int, _modified: int) -> str:
    """SHA-256 of a weight file's tensors, once a process for each state of the file."""
    return weights_from_file(weights).sha256


def named_input(kind: str, named: Place | None, own: Place, fingerprint: str) -> dict[str, str]:
    """What paths say of an input that an option names: nothing where it is the recipe's own."""
    same = named is None or from_root(named) == from_root(own)
    return {} if same else {kind: fingerprint}


def differences(pairs: Pairs, within: str = "") -> list[str]:
    """What is other than wanted, by full names with both values: `sae.k is 4, not 8`."""
    faults = []
    for key, pair in pairs.items():
        wanted, held = map(_plain, pair)
        if isinstance(wanted, Mapping) and isinstance(held, Mapping):
            keys = {**wanted, **held}
            faults += differences(
                {k: (wanted.get(k), held.get(k)) for k in keys}, f"{within}{key}."
            )
        elif wanted != held:
            faults.append(f"{within}{key} is {_short(held)}, not {_short(wanted)}")
    return faults


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def absent(run: RecipeRun, path: Place) -> str:
    """What messages say of an artefact that is not there, and of settings that options change."""
    base = run.base or run.params
    changed = {name: (value, getattr(base, name)) for name, value in run.params}
    own = {k: pair for k, pair in changed.items() if isinstance(pair[0], Section | str | Path)}
    faults = differences(own)
    other = f" The options ask for other settings than the recipe: there {'; '.join(faults)}."
    return f"{path} does not exist.{other if faults else ''}"


def made_otherwise(path: Place, faults: list[str]) -> str:
    """What messages say of an artefact that does not fit."""
    return f"{path} was made otherwise: {'; '.join(faults)}."


def refused(fault: str, command: str) -> NotThereError:
    """The error of what is not there or does not fit, and the command that mends it."""
    advice = f"Run `spg-pipe {command}` with the same options first."
    return NotThereError(f"{fault} {advice}", command=command)


def _short(value: object) -> str:
    """A value as messages show it; of a fingerprint its first digits."""
    text = "none" if value in (None, "", [], {}) else str(value)
    return text[:8] if len(text) == 64 and " " not in text else text

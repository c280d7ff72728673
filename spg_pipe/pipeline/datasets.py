"""The recipe's datasets and directions by name, and what lies in their folders."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spg_pipe.datasets.build import build_manifest, list_images
from spg_pipe.datasets.manifest import Manifest, Skipped
from spg_pipe.errors import SpgError, listed
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import Dataset, Direction, Params
from spg_pipe.recipe.protocol import protocol


def datasets_of(params: Params, split: str | None) -> list[Dataset]:
    """What `--split` names, or every dataset of the recipe."""
    return list(params.datasets) if split is None else [find_dataset(params, split)]


def find_dataset(params: Params, split: str, *, option: str = "--split") -> Dataset:
    """A dataset by what `--split` or a like option says: `visa`, `visa/train`, or a folder.

    An `SpgError` if it is none of these.
    """
    name, _, part = split.partition("/")
    known = [dataset.name for dataset in params.datasets]
    if name in known and part in ("", "test", "train", "all"):
        dataset = params.dataset(name)
        return dataset.model_copy(update={"split": part or dataset.split})
    folder = Path(split)
    if folder.is_dir():
        return Dataset(name=name_of(folder), layout="folder", root=folder, split="all")
    raise SpgError(
        f"{option} {split}: there is no such dataset in the recipe "
        f"(its datasets: {', '.join(known) or 'none'}) and no such folder. Name one of "
        "these, append /train or /test, give a folder of images, or switch the recipe, as with "
        "`spg-pipe recipe use paper-dinov3 --mvtec DIR --visa DIR`."
    )


def name_of(folder: Path) -> str:
    """A folder's name as that of a dataset."""
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("._-")
    return label or "images"


def split_name(params: Params, dataset: Dataset) -> str:
    """What `--split` says for a dataset that `find_dataset` found."""
    if dataset in params.datasets:
        return dataset.name
    # A folder that happens to be called as a dataset of the recipe is none of its splits.
    listed = (dataset.name, dataset.root) in [(row.name, row.root) for row in params.datasets]
    return f"{dataset.name}/{dataset.split}" if listed else shlex.quote(str(dataset.root))


def scan(
    run: RecipeRun,
    dataset: Dataset,
    *,
    limit: int | None = None,
    categories: Sequence[str] | None = None,
    skip_bad: bool = False,
    leave_out: Sequence[Skipped] = (),
    tell: bool = False,
) -> Manifest:
    """Look at a dataset's folder: names, sizes and content hashes.

    Parameters
    ----------
    limit, categories
        Of the dataset only a part: see `extract`.
    skip_bad : bool
        Leave out images that cannot be used; every image is decoded for it.
    leave_out : sequence of Skipped
        Leave out these, which were found to be bad before, while their files are the same.
    tell : bool
        Say what was noticed of the files.
    """
    part = dataset
    if categories is not None:
        part = dataset.model_copy(update={"categories": tuple(categories)})
        if list_images(part) == list_images(dataset):
            part = dataset  # all that there are: the dataset itself
    with run.console.progress(f"prepare {dataset.name}") as update:
        manifest = build_manifest(
            part,
            exif_of_own_images=protocol(run.params.method.protocol).exif_of_own_images,
            skip_bad=skip_bad,
            leave_out=leave_out,
            workers=run.workers,
            progress=update,
        )
    for note in manifest.notes if tell else ():
        run.console.say(f"  note: {note}")
    if part is not dataset and categories is not None:
        notes = (*manifest.notes, f"only {', '.join(sorted(categories))} (--categories)")
        manifest = replace(manifest, selection={"categories": sorted(categories)}, notes=notes)
    return manifest if limit is None else manifest.spread(limit)


def require_in_project(params: Params) -> None:
    """Refuse, with an `SpgError`, places to write to outside of this folder, which DVC has not."""
    if params.stores:
        raise SpgError(
            f"The recipe's stores lie in {params.stores}, which DVC does not track. Give the "
            "commands themselves (`spg-pipe extract`, `train-sae`, …), or leave out `stores:`."
        )
    here = Path.cwd()
    places = [
        ("artifacts", params.artifacts),
        *((each.name, each.root) for each in params.demo_sets),
    ]
    places += [(each.name, each.root) for each in params.synthetic_sets]
    for what, path in places:
        if not Path(os.path.normpath(here / path)).is_relative_to(here):
            raise SpgError(
                f"The place of {what}, {path}, is outside of {here}, where DVC keeps nothing. "
                "Name a folder in it, which may be a link, or work without DVC."
            )


def require_tracked(folder: Path) -> None:
    """Refuse a folder that a DVC stage depends on if some of its visible folders are links.

    DVC sees what a link to a file holds, and what is in a folder that is a link itself, but does
    not look into linked folders below it, which `datasets.walk` does. An `SpgError` names them.
    """
    linked = []
    for here, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        linked += [str(path) for name in names if (path := Path(here, name)).is_symlink()]
    if linked:
        raise SpgError(
            f"DVC does not look into linked folders, and would miss changes of the images there: "
            f"{listed(linked)}. Put the folders themselves there, or make each the root of a "
            "dataset; or work without DVC, as `spg-pipe extract` follows links."
        )


def find_direction(params: Params, target: str) -> Direction:
    """The recipe's direction with this target.

    An `SpgError` if the recipe has none, or several: `narrowed` says which.
    """
    fits = [way for way in params.directions if way.target == target]
    if len(fits) == 1:
        return fits[0]
    known = ", ".join(f"{d.aux} → {d.target}" for d in params.directions) or "none"
    raise SpgError(
        f"{len(fits)} of the recipe's directions ({known}) have target {target!r}. Choose "
        "one with --aux, name a detector (score --detector) or scores (evaluate --scores), or add "
        "the direction to the recipe."
    )

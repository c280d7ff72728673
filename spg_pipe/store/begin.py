"""Begin a store: declare its arrays, write what the manifest alone determines; refuse what is in
the way."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spg_pipe.artefacts.files import fresh_folder, write_bytes
from spg_pipe.artefacts.reading import reading
from spg_pipe.artefacts.record import parse_record
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError, listed
from spg_pipe.recipe.places import Place
from spg_pipe.store.claims import PATIENCE, holding
from spg_pipe.store.files import StoreFiles, is_damaged_store, read_attributes
from spg_pipe.store.format import (
    COMMAND,
    IMAGE_TABLE,
    StoreSpec,
    create_arrays,
    remade,
    write_small,
)
from spg_pipe.store.parts import PARTS
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import ShardEntry, in_folder, link_in_the_way, save_entries, write_file


def declare(folder: Path, spec: StoreSpec, manifest: Manifest) -> None:
    """Write a store without a shard into an empty folder: attributes, arrays, the image table.

    Its shards.json lists the table's files alone until the store is finished.
    """
    create_arrays(folder, spec)
    table = manifest.table
    rows = {name: table[name].to_numpy(dtype) for name, dtype in IMAGE_TABLE.items()}
    save_entries(
        folder, [write_array(folder, spec, name, "image", each) for name, each in rows.items()]
    )
    (folder / PARTS).mkdir()


def write_array(
    root: Path, spec: StoreSpec, name: str, dimension: str, values: np.ndarray
) -> ShardEntry:
    """Write a small array durably; its entry of shards.json."""
    write_small(root, name, values, dimension)
    chunk = f"{name}/c/0"  # written again: Zarr syncs nothing
    content = (root / chunk).read_bytes()
    entry = write_file(in_folder(root), chunk, range(spec.images), content)
    declared = root / name / "zarr.json"
    write_bytes(declared, declared.read_bytes())
    return entry


def begun(path: Place) -> StoreSpec | None:
    """The attributes of a store that is there, begun or complete; None if they are not whole."""
    try:
        return spec_in(StoreFiles(path))
    except SpgError:
        return None


def spec_in(files: StoreFiles) -> StoreSpec | None:
    """The attributes of a store, begun or complete; None where there is none.

    Raises SpgError if they are damaged, or cannot be read at present.
    """
    attributes = files.attributes()
    if attributes is None:
        return None
    return parse_record(json.dumps(attributes), files.place, StoreSpec, "store", COMMAND)


def begin_anew(path: Path, spec: StoreSpec, manifest: Manifest, *, replace: bool = False) -> None:
    """Begin a store in a place that holds none, or with `replace` one of other content.

    Only for who holds the lock of the store. Raises SpgError with what differs.
    """
    if not replace:
        with reading(path, "store", COMMAND):
            _refuse_other_content(path, spec, manifest)
    with fresh_folder(path) as folder:
        declare(folder, spec, manifest)


def begin_shared(path: Path, spec: StoreSpec, manifest: Manifest) -> bool:
    """Begin a store for writers of single shards, unless one of them has; False if it is complete.

    Raises SpgError if another store or something else is in the place, or if the store there is
    damaged, or was left unfinished by a version that kept no records of shards.
    """
    with holding(path, PATIENCE):
        refuse_what_is_no_store(path)
        there = begun(path)
        if there is None or there.fingerprint != spec.fingerprint:
            begin_anew(path, spec, manifest)
            return True
        if not there.complete and (other := other_versions(there.versions, spec.versions)):
            raise begun_by_others(path, other)
        if there.complete:
            faults = FeatureStore(path, check_files=False).file_faults()
        else:
            faults = [] if (path / PARTS).is_dir() else ["an older version left it unfinished"]
        if faults:
            raise SpgError(
                f"{path}: {faults[0]}. Mend it with the same `spg-pipe extract` without --shards."
            )
        return not there.complete


def begun_by_others(path: Place, other: Sequence[str]) -> SpgError:
    """The error of a store that was begun with `other_versions` than those here."""
    return SpgError(
        f"{path} was begun with other versions ({', '.join(other)} here): shards of one store come "
        "from the same libraries. Install those, or extract to another place with --out."
    )


def other_versions(wanted: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """`torch 2.14.1, not 2.13.0` of libraries whose versions differ; GPUs and drivers may."""
    names = sorted({*wanted, *here} - {"gpu", "driver"})
    return [
        f"{name} {here.get(name)}, not {wanted.get(name)}"
        for name in names
        if here.get(name) != wanted.get(name)
    ]


def refuse_what_is_no_store(path: Path) -> None:
    """Raise SpgError if something else than a store is in the place, or one with links in it."""
    there = read_attributes(path) or {}
    if {"schema", "fingerprint"} <= set(there) or is_damaged_store(path):
        if links := [p for p in (*path.glob("*"), *path.glob("*/c")) if p.is_symlink()]:
            raise link_in_the_way(links[0])
        return
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise SpgError(
            f"{path} exists and is not a feature store. Choose another place or remove it."
        )


def _refuse_other_content(path: Path, spec: StoreSpec, manifest: Manifest) -> None:
    """Raise SpgError if a store is in the place, with what differs."""
    if is_damaged_store(path):
        raise SpgError(f"{path} is a store with a damaged zarr.json: {remade(path)}.")
    if there := read_attributes(path):
        differs = what_differs(there, spec, manifest)
        raise SpgError(
            f"{path} holds a store of other content ({differs}). Use --replace without --shards "
            "to write it anew, or remove it, or choose another place."
        )


def what_differs(there: Mapping[str, Any], spec: StoreSpec, manifest: Manifest) -> str:
    """In what the attributes of a store are not those that are wanted, for messages."""
    wanted, words = spec.attributes(), []
    for name in [name for name in wanted if name not in spec.BESIDE]:
        old, new = there.get(name), wanted[name]
        if old == new:
            continue
        if name == "manifest":
            words.append("its images, masks or labels are others")
        elif isinstance(old, dict) and isinstance(new, dict):
            keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
            words.append(f"{name} differs ({', '.join(keys)})")
        else:
            words.append(f"{name}: found {old!r}, expected {new!r}")
    here = set(manifest.table["path"])
    repaired = [bad["path"] for bad in there.get("skipped") or () if bad["path"] in here]
    if repaired:
        words.append(f"it left out what is no longer left out: {listed(repaired)}")
    return "; ".join(words) or "changed attributes"

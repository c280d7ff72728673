"""Write shards of a store to an object store, or whatever fsspec writes to: without locks.

Each file is put whole, and only where there is none (a conditional put): once it is there it never
changes, so that any process may describe it. Only `finish` replaces two, zarr.json last.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from spg_pipe.artefacts.reading import reading
from spg_pipe.artefacts.record import record_text
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.store.begin import begun_by_others, declare, other_versions, spec_in, what_differs
from spg_pipe.store.files import StoreFiles
from spg_pipe.store.format import COMMAND, SHARD_INDEX, StoreSpec, create_arrays
from spg_pipe.store.parts import ShardPart, parse_part, part_name
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import in_folder, shard_files, write_file
from spg_pipe.store.writer import Arrays, part_from_files, write_arrays

_ADVICE = "Remove it with the file system's own tool, or choose another place."


class ShardsElsewhere:
    """Some shards of a store behind a URL for this process, while others write other shards.

    As `ClaimedShards`, but nobody holds a shard: what two processes compute at the same time, both
    put, and the first to do so has made it.
    """

    def __init__(self, path: str, spec: StoreSpec) -> None:
        self.path, self.spec = path, spec
        self.written: list[int] = []
        self.there: list[int] = []
        """Which were there already."""
        self.held: list[int] = []
        """None."""
        self._files = StoreFiles(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def begin(self, manifest: Manifest) -> bool:
        """Begin the store unless somebody has; False if it is complete.

        Raises SpgError if another store or something else is in the place, or if the store there is
        damaged.
        """
        there = spec_in(self._files)
        if there is None or self._files.size(SHARD_INDEX) is None:
            self._declare(manifest)
            there = spec_in(self._files)
        if there is None:
            raise SpgError(f"{self.path}/zarr.json is damaged, or of something else. {_ADVICE}")
        if there.fingerprint != self.spec.fingerprint:
            differs = what_differs(there.attributes(), self.spec, manifest)
            raise SpgError(f"{self.path} holds a store of other content ({differs}). {_ADVICE}")
        if not there.complete and (other := other_versions(there.versions, self.spec.versions)):
            raise begun_by_others(self.path, other)
        if there.complete and (faults := FeatureStore(self.path, check_files=False).file_faults()):
            raise SpgError(f"{self.path}: {faults[0]}. {_ADVICE}")
        return not there.complete

    def _declare(self, manifest: Manifest) -> None:
        """Put what `begin.declare` writes: zarr.json, which says whose place it is, then the rest,
        shards.json last."""
        with TemporaryDirectory(prefix="spg-begin-") as folder:
            declare(Path(folder), self.spec, manifest)
            paths = [path for path in Path(folder).rglob("*") if path.is_file()]
            declared = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        root = declared.pop("zarr.json")
        if self._files.create("zarr.json", root):
            if self._files.create("zarr.json", root):  # there is one: both cannot be true
                self._files.remove(["zarr.json"])
                raise SpgError(
                    f"{self.path}: its server does not know conditional puts (If-None-Match), "
                    "without which processes overwrite each other. Write the store to a folder, "
                    "and copy it there (docs/scale.md, “Writing”)."
                )
        else:
            there = spec_in(self._files)
            if there is None or there.fingerprint != self.spec.fingerprint or there.complete:
                return
        for name in sorted(declared, key=lambda name: name == SHARD_INDEX):
            if not self._put(name, declared[name]):
                raise SpgError(f"{self.path}/{name} is of another store. {_ADVICE}")

    def _put(self, name: str, content: bytes) -> bool:
        """Put a file where there is none; whether these bytes are there then."""
        return self._files.create(name, content) or self._files.read(name) == content

    def claimed(self, shards: Iterable[int]) -> Iterator[int]:
        """Those of the shards that are not there, each looked for when it is asked for.

        Raises SpgError if the store was removed or replaced.
        """
        for shard in shards:
            there = spec_in(self._files)
            if there is None or there.fingerprint != self.spec.fingerprint:
                raise SpgError(
                    f"{self.path} was removed or replaced while its shards were computed. Give the "
                    "same command again."
                )
            if there.complete or self._is_there(shard):
                self.there.append(shard)
            else:
                yield shard

    def _is_there(self, shard: int) -> bool:
        """Whether a shard has a record, and files of the sizes that it says; one with another
        record loses it, because its files were removed."""
        try:
            part = parse_part(self._files.read(part_name(shard)), self.spec, shard)
        except FileNotFoundError:
            return False
        if part is not None and part.has_sizes(self._files.size):
            return True
        self._files.remove([part_name(shard)])
        return False

    def write_shard(self, shard: int, arrays: Arrays) -> None:
        """Put the files of one shard, then its record, unless another process has."""
        if self._is_there(shard):
            self.there.append(shard)
            return
        others: list[str] = []

        def put(name: str, parts: Sequence[bytes | memoryview]) -> None:
            if not self._put(name, b"".join(parts)):
                others.append(name)

        part = write_arrays(put, self.spec, shard, arrays)
        if others:  # another processor's, with other last bits: they stay, and are what is recorded
            part = self._as_it_is(shard, part.lost_regions)
        self._files.create(part_name(shard), record_text(part).encode())
        self.written.append(shard)

    def _as_it_is(self, shard: int, lost: Sequence[int]) -> ShardPart:
        """The record of a shard from the files that are there."""
        rows = self.spec.shard_rows(shard)
        with (
            TemporaryDirectory(prefix="spg-shard-") as folder,
            reading(self.path, "store", COMMAND),
        ):
            root = Path(folder)
            create_arrays(root, self.spec)
            files = [
                write_file(in_folder(root), name, rows, self._files.read(name))
                for name in shard_files(self.spec, shard)
            ]
            return part_from_files(root, self.spec, shard, files, lost)

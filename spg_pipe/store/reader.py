"""Open a finished store and read it at fixed offsets."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.store.schema import SCHEMA_VERSION, StoreSpec, read_attributes
from spg_pipe.store.shards import load_entries, token_shard_name

if TYPE_CHECKING:
    import pandas as pd


_MASK_CACHE_BYTES = 256 * 1024**2


class FeatureStore:
    """Tokens, masks and labels of a dataset split.

    Parameters
    ----------
    path : Path
        A finished store's folder.

    Raises
    ------
    SpgError
        If it is missing, unfinished, of another schema, or a file does not have the size that
        shards.json says.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        attributes = read_attributes(self.path)
        if attributes is None or "schema" not in attributes:
            raise SpgError(
                f"{self.path} is not a feature store. Make it with `spg-pipe extract`, "
                "or check the path."
            )
        if attributes["schema"] != SCHEMA_VERSION:
            raise SpgError(
                f"{self.path} is a store of schema {attributes['schema']}; this version reads "
                f"schema {SCHEMA_VERSION}. Make it again with `spg-pipe extract --replace`."
            )
        if not attributes.get("complete"):
            raise SpgError(
                f"{self.path} is not finished: an extract was interrupted. Run the same "
                "`spg-pipe extract` again; it goes on where it stopped."
            )
        self.attributes: dict[str, Any] = attributes
        self.spec = StoreSpec.from_content(attributes)
        self._check_files()

    def _check_files(self) -> None:
        entries = {entry.name: entry for entry in load_entries(self.path)}
        for layer in self.spec.layers:
            for shard in range(self.spec.shards):
                name = token_shard_name(layer, shard)
                if name not in entries:
                    raise SpgError(f"{self.path}: shards.json does not list {name}; {_REMAKE}")
        for entry in entries.values():
            file = self.path / entry.name
            size = file.stat().st_size if file.is_file() else None
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                raise SpgError(
                    f"{self.path}: {entry.name} (images {entry.images[0]}…{entry.images[1] - 1}) "
                    f"{found}, expected {entry.bytes} bytes; {_REMAKE}"
                )

    def __len__(self) -> int:
        return self.spec.images

    @property
    def fingerprint(self) -> str:
        """The fingerprint of what determined the content."""
        return str(self.attributes["fingerprint"])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the backbone's order."""
        return tuple(self.spec.layers)

    @property
    def image_size(self) -> int:
        """S: the side of the images that the backbone saw, pixels."""
        return self.spec.backbone.preprocess.size

    @property
    def licences(self) -> tuple[str, ...]:
        """Licences of the data and of the weights."""
        return tuple(self.attributes["licences"])

    @cached_property
    def _group(self) -> Any:
        import zarr

        return zarr.open_group(self.path, mode="r")

    def array(self, name: str) -> np.ndarray:
        """A small array as a whole, for instance `label` or `mean_<layer>`."""
        return np.asarray(self._group[name][...])

    @cached_property
    def _shards(self) -> dict[str, list[np.ndarray]]:
        """Memory maps of every layer's shards, each (n, N, D)."""
        return {
            layer: [
                np.memmap(
                    self.path / token_shard_name(layer, shard),
                    dtype=self.spec.dtype,
                    mode="r",
                    shape=(len(self.spec.shard_rows(shard)), shape.patches, shape.dim),
                )
                for shard in range(self.spec.shards)
            ]
            for layer, shape in self.spec.layers.items()
        }

    def tokens(self, layer: str, images: np.ndarray) -> np.ndarray:
        """Patch tokens of some images.

        Parameters
        ----------
        layer : str
        images : (n,) int
            Image rows, in any order.

        Returns
        -------
        (n, N, D) in the store's dtype
        """
        shape = self.spec.layers[layer]
        out = np.empty((len(images), shape.patches, shape.dim), dtype=self.spec.dtype)
        shards = self._shards[layer]
        for row, image in enumerate(images):
            shard, offset = divmod(int(image), self.spec.shard_images)
            out[row] = shards[shard][offset]
        return out

    @cached_property
    def _prefix(self) -> dict[str, np.ndarray]:
        return {layer: self.array(f"prefix_{layer}") for layer in self.layers}

    def cls(self, layer: str, images: np.ndarray) -> np.ndarray:
        """CLS tokens (n, D) of some images, in the store's dtype."""
        return self._prefix[layer][images, 0]

    def masks(self, images: np.ndarray) -> np.ndarray:
        """Masks (n, S, S) uint8 in {0, 1}; all zero where `mask_state` is not 1."""
        size = self.image_size
        packed = self._packed_masks
        if packed is None:
            return np.stack([self._group["mask"][int(image)] for image in images])
        bits = np.unpackbits(packed[images], axis=1, count=size * size)
        return bits.reshape(len(images), size, size)

    @cached_property
    def _packed_masks(self) -> np.ndarray | None:
        """All masks, a bit a pixel, if they fit: guides read every one of them in every epoch."""
        row_bytes = -(-(self.image_size**2) // 8)
        if len(self) * row_bytes > _MASK_CACHE_BYTES:
            return None
        packed = np.empty((len(self), row_bytes), np.uint8)
        step = self.spec.shard_images
        for start in range(0, len(self), step):
            masks = np.asarray(self._group["mask"][start : start + step])
            packed[start : start + len(masks)] = np.packbits(masks.reshape(len(masks), -1), axis=1)
        return packed

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row an image: path, category, defect, label, mask_state, height, width."""
        import pandas as pd

        columns = ("path", "category", "defect", "label", "mask_state", "height", "width")
        return pd.DataFrame({name: self.array(name) for name in columns})


_REMAKE = "make the store again with `spg-pipe extract --replace` and the same options."

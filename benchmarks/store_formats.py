"""The same tokens in the store and in what people use instead, read in the same ways."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from spg_pipe.backbones.base import LayerTokens
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.datasets.build import build_manifest
from spg_pipe.images.preprocess import Preprocess
from spg_pipe.recipe.data import Dataset
from spg_pipe.store.extract import Extraction, extract
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import in_folder, raw_bytes, write_shard
from spg_pipe.store.source import TokenSource
from spg_pipe.store.statistics import ShardStatistics
from spg_pipe.store.stream import token_batches

LAYER, PATCHES, DIM = "24", 785, 1024
BATCH_TOKENS, WINDOW = 8192, 96
Jobs = list[np.ndarray]
Read = Callable[[Jobs], Iterable[Any]]
"""Groups of image rows (n,) → of each its tokens, (n, N, D) in one piece of memory."""


@dataclass(frozen=True)
class Format:
    """One way to keep tokens on a disk."""

    name: str
    files: list[Path]
    read: Read
    tokens: Callable[[int], Iterator[torch.Tensor]]
    """An epoch (seed given) of shuffled batches of 8192 tokens."""
    release: Callable[[], None] = lambda: None
    """Let go of what keeps pages in memory: a mapping."""

    @property
    def bytes(self) -> int:
        """What lies on the disk."""
        return sum(path.stat().st_size for path in self.files)


class RandomTokens:
    """A backbone that costs nothing: normal tokens, different for every image. Masks are 448²."""

    spec = BackboneSpec(
        alias="random",
        family="timm-vit",
        model="random",
        layers=(LAYER,),
        norm="post",
        patch_size=8,
        preprocess=Preprocess(448, "float", "bilinear", (0.5,) * 3, (0.5,) * 3),
        pos_embed="native",
        prefix="cls",
        weights="none",
        weights_sha256="0" * 64,
        licence="none",
    )

    def __init__(self) -> None:
        self._base = torch.randn(PATCHES, DIM, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: torch.Tensor) -> dict[str, LayerTokens]:
        shift = images.mean(dim=(1, 2, 3))[:, None, None]
        tokens = self._base + shift
        return {LAYER: LayerTokens(tokens, tokens[:, :1], (157, 5))}


def write_images(folder: Path, images: int) -> Path:
    """Small normal pictures, no two alike; the folder that holds them."""
    raw = folder / "raw" / "dots" / "good"
    raw.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        grey = np.full((8, 8), number % 256, np.uint8)
        grey[0, : 1 + number // 256 % 8] ^= 255
        grey[1, : 1 + number // 2048] ^= 255
        Image.fromarray(grey).save(raw / f"{number:05d}.png")
    return folder / "raw"


def write_store(folder: Path, images: int) -> FeatureStore:
    """The store itself, through `extract`: shards of 128 images, batches of 8 as in the recipes."""
    manifest = build_manifest(
        Dataset(name="random", layout="folder", root=write_images(folder, images), split="all")
    )
    return extract(manifest, RandomTokens(), folder / "store.zarr", Extraction(shard_images=128))


def writers(folder: Path, store: FeatureStore) -> dict[str, Callable[[], None]]:
    """One shard of 128 images from memory to the disk, in each format, until it is durable."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = range(128)
    tokens = store.tokens(LAYER, np.arange(128))
    halves = torch.from_numpy(tokens)

    def sharded() -> None:
        images = [raw_bytes(image) for image in tokens]
        write_shard(in_folder(folder), "shard", images, rows, len(rows))
        ShardStatistics.of(tokens)

    def memmap() -> None:
        out = np.lib.format.open_memmap(folder / "m.npy", "w+", tokens.dtype, tokens.shape)
        out[...] = tokens
        out.flush()

    def pth() -> None:
        for row in rows:
            with (folder / f"{row}.pth").open("wb") as stream:
                torch.save(halves[row].float(), stream)
                stream.flush()
                os.fsync(stream.fileno())

    def zarr_python() -> None:
        import zarr

        array = zarr.create_array(
            folder / "z.zarr",
            shape=tokens.shape,
            dtype=tokens.dtype,
            chunks=(1, *tokens.shape[1:]),
            shards=tokens.shape,
            compressors=None,
            overwrite=True,
        )
        array[...] = tokens
        for path in (folder / "z.zarr").rglob("*"):
            if path.is_file():  # Zarr does not
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())

    return {
        "store, with checksums and statistics": sharded,
        "memmap .npy": memmap,
        "pth an image": pth,
        "zarr-python": zarr_python,
    }


def formats(folder: Path, store: FeatureStore) -> list[Format]:
    """All formats that can be had here, holding the store's tokens."""
    array = store.files.local / f"tokens_{LAYER}"  # type: ignore[operator]
    shards = sorted(path for path in (array / "c").rglob("*") if path.is_file())
    found = [
        Format(
            "store", shards, TokenSource(store, LAYER).take, lambda seed: _store_tokens(store, seed)
        ),
        _memmap(folder, store),
        _pth(folder, store),
    ]
    plain = FeatureStore(store.path, plain=True)
    found.append(_generic("zarr-python", shards, partial(map, partial(plain.tokens, LAYER))))
    return [*found, *_peers(array, shards)]


def _store_tokens(store: FeatureStore, seed: int) -> Iterator[torch.Tensor]:
    source = TokenSource(store, LAYER)
    options = {"batch_tokens": BATCH_TOKENS, "window_images": WINDOW}
    yield from token_batches(source, seed=seed, epoch=0, **options)


def _memmap(folder: Path, store: FeatureStore) -> Format:
    path = folder / "tokens.npy"
    shape = (len(store), PATCHES, DIM)
    if not path.exists():
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, len(store), 64):
            rows = np.arange(start, min(start + 64, len(store)))
            out[rows] = store.tokens(LAYER, rows)
        out.flush()
    mappings: list[torch.Tensor] = []
    buffer = torch.empty((WINDOW, PATCHES, DIM), dtype=torch.float16)

    def read(jobs: Jobs) -> Iterator[torch.Tensor]:
        if not mappings:
            mappings.append(torch.from_numpy(np.load(path, mmap_mode="c")))
        for rows in jobs:
            # Copied by torch, like the store's tokens: faster than numpy's slices and `take`.
            yield torch.stack([mappings[0][row] for row in rows.tolist()], out=buffer[: len(rows)])

    def tokens(seed: int) -> Iterator[torch.Tensor]:
        """As the store does it: rows gathered from the mapping itself, into memory used again."""
        if not mappings:
            mappings.append(torch.from_numpy(np.load(path, mmap_mode="c")))
        rows, out = mappings[0].flatten(0, 1), torch.empty(BATCH_TOKENS, DIM, dtype=torch.float16)
        order = np.random.default_rng(seed).permutation(shape[0])
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, len(order), WINDOW):
            window = torch.from_numpy(order[start : start + WINDOW])
            places = (window[:, None] * PATCHES + torch.arange(PATCHES)).flatten()
            shuffled = places[torch.randperm(len(places), generator=generator)]
            for piece in shuffled.split(BATCH_TOKENS):
                yield torch.index_select(rows, 0, piece, out=out[: len(piece)])

    return Format("memmap .npy", [path], read, tokens, mappings.clear)


def _pth(folder: Path, store: FeatureStore) -> Format:
    """One float32 file an image, as the published code caches its tokens."""
    place = folder / "pth"
    place.mkdir(exist_ok=True)
    paths = [place / f"{row:05d}.pth" for row in range(len(store))]
    for row, path in enumerate(paths):
        if not path.exists():
            tokens = store.tokens(LAYER, np.array([row]))[0].astype(np.float32)
            torch.save(torch.from_numpy(tokens), path)

    def read(rows: np.ndarray) -> torch.Tensor:
        return torch.stack([torch.load(paths[row], weights_only=True) for row in rows.tolist()])

    return _generic("pth an image", paths, partial(map, read))


def _generic(name: str, files: list[Path], read: Read) -> Format:
    """Shuffled tokens in the plain way: read a window, permute it, cut it."""

    def tokens(seed: int) -> Iterator[torch.Tensor]:
        # A .pth holds one image in float32; the others hold float16 and little else.
        size = sum(path.stat().st_size for path in files)
        images = len(files) if name == "pth an image" else size // (PATCHES * DIM * 2)
        order = np.random.default_rng(seed).permutation(images)
        generator = torch.Generator().manual_seed(seed)
        out: dict[torch.dtype, torch.Tensor] = {}
        for window in read([order[start : start + WINDOW] for start in range(0, images, WINDOW)]):
            flat = torch.as_tensor(window).flatten(0, 1)
            shuffled = torch.randperm(len(flat), generator=generator)
            for piece in shuffled.split(BATCH_TOKENS):
                room = out.setdefault(flat.dtype, torch.empty(BATCH_TOKENS, DIM, dtype=flat.dtype))
                yield torch.index_select(flat, 0, piece, out=room[: len(piece)])

    return Format(name, files, read, tokens)


def _peers(array: Path, shards: list[Path]) -> list[Format]:
    """Other Zarr readers on the same shards, where they are installed."""
    found = []
    try:
        import tensorstore
    except ImportError:
        print("tensorstore is not installed: left out (pip install tensorstore)")
    else:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{array}/"}}
        opened = tensorstore.open(spec, read=True).result()
        found.append(
            _generic("tensorstore", shards, partial(map, lambda rows: opened[rows].read().result()))
        )
    try:
        import zarr
        import zarrs  # noqa: F401 - registers its pipeline
    except ImportError:
        print("zarrs is not installed: left out (pip install zarrs)")
    else:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            rust = zarr.open_array(array, mode="r")

        def read(rows: np.ndarray) -> np.ndarray:
            runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
            return np.concatenate([rust[int(run[0]) : int(run[-1]) + 1] for run in runs])

        found.append(_generic("zarrs", shards, partial(map, read)))
    return found

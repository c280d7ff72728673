"""Where the tokens of a stream come from: the disk, read ahead, or memory that holds them all."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from spg_pipe.store.mapped import MappedTokens, huge_pays
from spg_pipe.store.readahead import read_ahead
from spg_pipe.store.reader import FeatureStore

_SHARE = 0.5
"""Of the free memory of a device or host that `cache: auto` takes."""


@dataclass(frozen=True)
class Patches:
    """The patch tokens of some images, where they lie: as rows of a larger matrix."""

    rows: Tensor
    """(R, D) in the store's dtype."""
    starts: np.ndarray
    """(n,) int64: the row of each image's first patch; its others follow."""
    per_image: int
    """N."""

    def __len__(self) -> int:
        """Tokens: n·N."""
        return len(self.starts) * self.per_image

    def images(self) -> list[Tensor]:
        """A view (N, D) an image."""
        return [self.rows[start : start + self.per_image] for start in self.starts.tolist()]

    def places(self, order: np.ndarray) -> Tensor:
        """The rows of tokens: `order` (m,) counts image by image, 0 to n·N − 1."""
        image, patch = np.divmod(order, self.per_image)
        return torch.from_numpy(self.starts[image] + patch).to(self.rows.device)


class TokenSource:
    """Patch tokens of one layer, by groups of images, on a device.

    Parameters
    ----------
    store : FeatureStore
    layer : str
    device : str
    cache : "auto" | "device" | "host" | "none"
        Hold the whole layer in the device's memory or in the host's, or read it anew each time.
        `auto`: on a GPU its memory if the layer fits in half of what is free, then the host's;
        on a CPU nothing, because the operating system's page cache already is that memory.
    """

    def __init__(
        self, store: FeatureStore, layer: str, *, device: str = "cpu", cache: str = "auto"
    ) -> None:
        self.store, self.layer, self.device = store, layer, torch.device(device)
        self.dtype = torch.float16 if store.spec.dtype == "float16" else torch.float32
        shape = store.spec.layers[layer]
        self.patches, self.dim = shape.patches, shape.dim
        self.cache = self._choose() if cache == "auto" else cache

    def take(self, jobs: Sequence[np.ndarray]) -> Iterator[Patches]:
        """The tokens of each job's images, on the device.

        They are valid until the next ones are asked for.

        Raises
        ------
        SpgError
            If a shard cannot be read.
        """
        if self.cache != "none":
            yield from map(self._held, jobs)
        elif (mapped := self._mapped(jobs)) is not None:
            yield from self._in_place(mapped, jobs)
        else:
            most = max((len(job) for job in jobs), default=0)
            yield from read_ahead(jobs, self._load, lambda: self._buffer(most))

    def _choose(self) -> str:
        if self.device.type != "cuda":
            return "none"
        size = len(self.store) * self.patches * self.dim * self.dtype.itemsize
        if size <= _SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return "device"
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return "host" if size <= _SHARE * available else "none"

    def _mapped(self, jobs: Sequence[np.ndarray]) -> MappedTokens | None:
        """On a CPU the page cache itself is read, where it can be."""
        if self.device.type != "cpu":
            return None
        image_bytes = self.patches * self.dim * self.dtype.itemsize
        return self.store.mapped(self.layer, huge=huge_pays(jobs, image_bytes))

    def _in_place(self, mapped: MappedTokens, jobs: Sequence[np.ndarray]) -> Iterator[Patches]:
        """Each job where it lies, the next one being read from the disk meanwhile."""
        runs = [mapped.runs(job) for job in jobs]
        try:
            for number, job in enumerate(jobs):
                for run in runs[0] if number == 0 else []:
                    mapped.announce(run)
                for run in runs[number]:
                    mapped.fetch(run)
                for run in runs[number + 1] if number + 1 < len(jobs) else []:
                    mapped.announce(run)
                yield Patches(mapped.rows, mapped.starts(job), self.patches)
                mapped.release_runs(runs[number])
        finally:
            mapped.release_all()

    def _held(self, images: np.ndarray) -> Patches:
        held = Patches(self._resident, images.astype(np.int64) * self.patches, self.patches)
        if self._resident.device.type == self.device.type:
            return held
        return self._packed(torch.stack(held.images()).to(self.device))

    def _packed(self, tokens: Tensor) -> Patches:
        """Images (n, N, D) that lie one after the other."""
        return Patches(
            tokens.flatten(0, 1),
            np.arange(len(tokens), dtype=np.int64) * self.patches,
            self.patches,
        )

    @cached_property
    def _resident(self) -> Tensor:
        """The whole layer (images·N, D): read once, at its first use."""
        device = self.device if self.cache == "device" else torch.device("cpu")
        count, step = len(self.store), self.store.spec.shard_images
        whole = torch.empty((count * self.patches, self.dim), dtype=self.dtype, device=device)
        jobs = [np.arange(first, min(first + step, count)) for first in range(0, count, step)]
        chunks = read_ahead(jobs, self._load, lambda: self._buffer(step))
        for images, chunk in zip(jobs, chunks, strict=True):
            first = int(images[0]) * self.patches
            whole[first : first + len(chunk)] = chunk.rows
        return whole

    def _buffer(self, images: int) -> Tensor:
        """Memory for some images, pinned where a GPU copies from it."""
        pinned = self.device.type == "cuda"
        return torch.empty((images, self.patches, self.dim), dtype=self.dtype, pin_memory=pinned)

    def _load(self, images: np.ndarray, buffer: Tensor) -> Patches:
        place = buffer[: len(images)]
        self.store.tokens(self.layer, images, out=place.numpy())
        if self.device.type != "cuda":
            return self._packed(place)
        # In the reading thread and on a stream of its own, so that it overlaps the computing.
        stream = self._copying
        with torch.cuda.stream(stream):
            copied = place.to(self.device, non_blocking=True)
        stream.synchronize()
        copied.record_stream(torch.cuda.default_stream(self.device))
        return self._packed(copied)

    @cached_property
    def _copying(self) -> "torch.cuda.Stream":
        return torch.cuda.Stream(self.device)

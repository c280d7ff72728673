"""Where the tokens of a stream come from: the disk, read ahead, or memory that holds them all."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from spg_pipe.store.readahead import read_ahead
from spg_pipe.store.reader import FeatureStore

_SHARE = 0.5
"""Of the free memory of a device or host that `cache: auto` takes."""


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
        self._dtype = torch.float16 if store.spec.dtype == "float16" else torch.float32
        shape = store.spec.layers[layer]
        self.patches, self.dim = shape.patches, shape.dim
        self.cache = self._choose() if cache == "auto" else cache

    def take(self, jobs: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Tokens (n, N, D) of each job's images, in the store's dtype, on the device.

        A tensor is valid until the next one is asked for.
        """
        if self.cache == "none":
            most = max((len(job) for job in jobs), default=0)
            yield from read_ahead(jobs, self._load, lambda: self._buffer(most))
            return
        for images in jobs:
            rows = torch.from_numpy(images).to(self._resident.device)
            yield self._resident[rows].to(self.device)

    def _choose(self) -> str:
        if self.device.type != "cuda":
            return "none"
        size = len(self.store) * self.patches * self.dim * self._dtype.itemsize
        if size <= _SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return "device"
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return "host" if size <= _SHARE * available else "none"

    @cached_property
    def _resident(self) -> Tensor:
        """The whole layer (images, N, D): read once, at its first use."""
        device = self.device if self.cache == "device" else torch.device("cpu")
        whole = torch.empty(
            (len(self.store), self.patches, self.dim), dtype=self._dtype, device=device
        )
        step = self.store.spec.shard_images
        jobs = [
            np.arange(start, min(start + step, len(self.store)))
            for start in range(0, len(self.store), step)
        ]
        for images, tokens in zip(
            jobs, read_ahead(jobs, self._load, lambda: self._buffer(step)), strict=True
        ):
            whole[int(images[0]) : int(images[-1]) + 1] = tokens
        return whole

    def _buffer(self, images: int) -> Tensor:
        """Memory for some images, pinned where a GPU copies from it."""
        pinned = self.device.type == "cuda"
        return torch.empty((images, self.patches, self.dim), dtype=self._dtype, pin_memory=pinned)

    def _load(self, images: np.ndarray, buffer: Tensor) -> Tensor:
        place = buffer[: len(images)]
        self.store.tokens(self.layer, images, out=place.numpy())
        if self.device.type != "cuda":
            return place
        # In the reading thread and on a stream of its own, so that it overlaps the computing.
        stream = self._copying
        with torch.cuda.stream(stream):
            copied = place.to(self.device, non_blocking=True)
        stream.synchronize()
        copied.record_stream(torch.cuda.default_stream(self.device))
        return copied

    @cached_property
    def _copying(self) -> "torch.cuda.Stream":
        return torch.cuda.Stream(self.device)

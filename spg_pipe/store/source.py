"""Where the tokens of a stream come from: the disk, read ahead, or memory that holds them all."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from spg_pipe.store.reader import FeatureStore

J = TypeVar("J")
R = TypeVar("R")
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
        self.dtype = torch.float16 if store.spec.dtype == "float16" else torch.float32
        shape = store.spec.layers[layer]
        self.patches, self.dim = shape.patches, shape.dim
        self.cache = self._choose() if cache == "auto" else cache

    def take(self, jobs: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """The tokens (n, N, D) of each job's n images, on the device in the store's dtype."""
        return read_ahead(jobs, self._read) if self.cache == "none" else map(self._held, jobs)

    def _choose(self) -> str:
        if self.device.type != "cuda":
            return "none"
        size = len(self.store) * self.store.spec.image_bytes(self.layer)
        if size <= _SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return "device"
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return "host" if size <= _SHARE * available else "none"

    def _held(self, images: np.ndarray) -> Tensor:
        rows = torch.from_numpy(images.astype(np.int64)).to(self._resident.device)
        return self._resident[rows].to(self.device)

    @cached_property
    def _resident(self) -> Tensor:
        """The whole layer (images, N, D): read once, at its first use."""
        device = self.device if self.cache == "device" else torch.device("cpu")
        count, step = len(self.store), self.store.spec.shard_images
        whole = torch.empty((count, self.patches, self.dim), dtype=self.dtype, device=device)
        jobs = [np.arange(first, min(first + step, count)) for first in range(0, count, step)]
        for images, tokens in zip(jobs, read_ahead(jobs, self._read), strict=True):
            whole[int(images[0]) : int(images[-1]) + 1] = tokens
        return whole

    def _read(self, images: np.ndarray) -> Tensor:
        on_gpu = self.device.type == "cuda"
        shape = (len(images), self.patches, self.dim)
        # Pinned, because a GPU copies from it; PyTorch uses such memory again.
        tokens = torch.empty(shape, dtype=self.dtype, pin_memory=on_gpu)
        self.store.tokens(self.layer, images, out=tokens.numpy())
        if not on_gpu:
            return tokens
        # In the reading thread and on a stream of its own, so that it overlaps the computing.
        with torch.cuda.stream(self._copying):
            copied = tokens.to(self.device, non_blocking=True)
        self._copying.synchronize()
        copied.record_stream(torch.cuda.default_stream(self.device))
        return copied

    @cached_property
    def _copying(self) -> "torch.cuda.Stream":
        return torch.cuda.Stream(self.device)


def in_order(pool: Executor, work: Callable[[J], R], jobs: Iterable[J], ahead: int) -> Iterator[R]:
    """Results in the order of the jobs, at most `ahead` of them waiting or under way.

    What `work` raises is raised here.
    """
    pending: deque[Future[R]] = deque()
    try:
        for job in jobs:
            if len(pending) == ahead:
                yield pending.popleft().result()
            pending.append(pool.submit(work, job))
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def read_ahead(jobs: Sequence[J], load: Callable[[J], R]) -> Iterator[R]:
    """Results of `load` in order, the next one being made in a thread while one is used.

    Memory does not grow with the number of jobs: one result is ready or under way, and another
    begins when the consumer asks for that one.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="spg-ahead") as thread:
        yield from in_order(thread, load, jobs, ahead=2)

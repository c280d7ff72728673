"""Items → judged images, in their order: decoding, forward passes and results share the cores."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from spg_pipe.bank.normal_patches import BATCH
from spg_pipe.detector.judge import Judged
from spg_pipe.errors import SpgError
from spg_pipe.explain.explanation import Explanation
from spg_pipe.predict.items import Content, Item, Reading, sha256_of
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.view import View
from spg_pipe.recipe.machine import cpu_workers
from spg_pipe.store.compute import core_workers

R = TypeVar("R")


class JudgedImage(NamedTuple):
    """An image with what was found in it."""

    item: Item
    sha256: str
    """Of the file's bytes."""
    pixels: np.ndarray
    """(H, W, 3) uint8 or uint16, as `read_image` gives it."""
    anomaly_map: np.ndarray
    """(H, W) float32 in [0, 1]; 0 where pixels do not count."""
    view: View
    """How it was shown to the backbone."""
    columns: dict[str, float]
    """`score` and what it is made of; see `Judged.columns`."""
    explanation: Explanation | None = None
    """Of its batch, if asked for."""
    number: int = 0
    """In its batch."""


class Unreadable(NamedTuple):
    """An image that could not be judged."""

    item: Item
    sha256: str | None
    """None if not even its bytes could be had."""
    error: str


@runtime_checkable
class Arriving(Protocol):
    """Images that come one by one and wait to be judged: those that wait are judged together."""

    def take(self, most: int) -> list[Item]:
        """Up to so many that wait, as soon as there is one; none: no more will come."""


Known = Callable[[int, Sequence[Item], Sequence[str | None]], list[R] | None]
"""Earlier results of a batch, by the position of its first item and by each one's content; None if
it must be judged."""


def judge_items(
    predictor: Predictor,
    items: Iterable[Item] | Arriving,
    how: Reading,
    then: Callable[[JudgedImage | Unreadable], R],
    *,
    known: Known[R] | None = None,
    explained: bool | Callable[[Item], bool] = False,
    live: bool = False,
) -> Iterator[R]:
    """What `then` makes of each item, in their order, as soon as it is done.

    On a CPU every worker takes an image from its file through `then`, each on a core of its own: a
    score does not depend on the number of workers or on other images. On a GPU workers read ahead
    and finish behind the forward passes, of batches that go by the position among the items: if all
    of a batch are known, none is judged, and else all, so that their bits stay the same. An
    `SpgError` if a bank alone is to be explained, or scores are no numbers.

    Parameters
    ----------
    then : callable
        Called in several threads.
    known : callable, optional
        See `Known`.
    explained : bool or callable
        Take the scores apart, of all images or of those that it is true of.
    live : bool
        Items arrive one by one: judge each at once.
    """
    work = _Work(predictor, how, then, known, explained)
    on_cpu = _on_cpu(predictor)
    step = 1 if live or on_cpu else max(1, BATCH // predictor.backbone.spec.inputs_per_image)
    workers = cpu_workers(None)
    # Of what waits nothing is taken long before a GPU comes to it, so that batches are large.
    ahead = 2 if isinstance(items, Arriving) and not on_cpu else 2 * workers + 1
    with (
        core_workers(workers, one_core_each=on_cpu) as pool,
        ThreadPoolExecutor(1, "spg-forward") as forward,
        ThreadPoolExecutor(workers, "spg-finish") as finishing,
    ):

        def begun(batch: tuple[int, list[Item]]) -> Future[list[R]]:
            if on_cpu:
                return pool.submit(work.whole, *batch)
            read = pool.submit(work.read, *batch)
            judged = forward.submit(lambda: work.judge(read.result()))
            return finishing.submit(lambda: work.finish(judged.result()))

        with closing(_in_order(_batches(items, step), begun, ahead)) as results:
            for batch in results:
                yield from batch


def _on_cpu(predictor: Predictor) -> bool:
    return torch.device(predictor.device).type == "cpu"


def _batches(items: Iterable[Item] | Arriving, step: int) -> Iterator[tuple[int, list[Item]]]:
    """The position of each batch's first item, and its items."""
    start = 0
    if isinstance(items, Arriving):
        take = items.take
    else:
        each = iter(items)

        def take(most: int) -> list[Item]:
            return list(islice(each, most))

    while batch := take(step):
        yield start, batch
        start += len(batch)


J = TypeVar("J")


def _in_order(
    jobs: Iterable[J], begun: Callable[[J], Future[R]], ahead: int
) -> Generator[R, None, None]:
    """Results in the order of the jobs, each as soon as it is there; at most `ahead` wait.

    A thread of its own asks for the next job, which may be long in coming.
    """
    waiting: queue.Queue[Future[R] | BaseException | None] = queue.Queue(ahead)
    stopped = threading.Event()

    def feed() -> None:
        end: BaseException | None = None
        try:
            for job in jobs:
                if stopped.is_set():
                    return
                waiting.put(begun(job))
        except BaseException as error:  # raised where results are taken
            end = error
        waiting.put(end)

    threading.Thread(target=feed, name="spg-items", daemon=True).start()
    try:
        while (next_one := waiting.get()) is not None:
            if isinstance(next_one, BaseException):
                raise next_one
            yield next_one.result()
    finally:
        stopped.set()
        with waiting.mutex:
            pending = [each for each in waiting.queue if isinstance(each, Future)]
            waiting.queue.clear()
            waiting.not_full.notify_all()
        for future in pending:
            future.cancel()


class _Photograph(NamedTuple):
    """An image that was read."""

    item: Item
    sha256: str
    pixels: np.ndarray
    view: View
    kept: np.ndarray | None
    """See `View.kept`."""


def _known(result: R) -> R:
    return result


@dataclass(frozen=True)
class _Work(Generic[R]):
    """The way of a batch from its files to its results; what needs no judging is a call."""

    predictor: Predictor
    how: Reading
    then: Callable[[JudgedImage | Unreadable], R]
    known: Known[R] | None
    explained: bool | Callable[[Item], bool]

    def whole(self, start: int, items: Sequence[Item]) -> list[R]:
        """All steps, one after the other."""
        return self.finish(self.judge(self.read(start, items)))

    def read(self, start: int, items: Sequence[Item]) -> list[_Photograph | Callable[[], R]]:
        """A batch's pixels, or its results if all are known."""
        contents = [self._content(item) for item in items]
        digests = [None if isinstance(each, Unreadable) else each[1] for each in contents]
        if self.known and (found := self.known(start, items, digests)) is not None:
            return [partial(_known, result) for result in found]
        return [
            partial(self.then, each) if isinstance(each, Unreadable) else self._pixels(item, *each)
            for item, each in zip(items, contents, strict=True)
        ]

    def _content(self, item: Item) -> tuple[Content, str] | Unreadable:
        try:
            content = item.content()
        except SpgError as error:
            return Unreadable(item, None, str(error))
        return content, sha256_of(content)

    def _pixels(self, item: Item, content: Content, sha256: str) -> _Photograph | Callable[[], R]:
        size = self.predictor.backbone.spec.preprocess.size
        try:
            pixels = item.pixels(content, self.how)
            shape = (pixels.shape[0], pixels.shape[1])
            view = self.how.viewing.of(item.name, item.group, shape, exif=self.how.exif)
            return _Photograph(item, sha256, pixels, view, view.kept(size))
        except SpgError as error:
            return partial(self.then, Unreadable(item, sha256, str(error)))

    def judge(self, batch: list[_Photograph | Callable[[], R]]) -> Iterable[Callable[[], R]]:
        """The forward pass of a batch and what the detector says of it."""
        read = [each for each in batch if isinstance(each, _Photograph)]
        scored = iter(self._scored(read) if read else ())
        return [next(scored) if isinstance(each, _Photograph) else each for each in batch]

    def _scored(self, read: list[_Photograph]) -> Iterator[Callable[[], R]]:
        pixels, explanation = [each.view.framed(each.pixels) for each in read], None
        kept = [each.kept for each in read]
        asked = self.explained
        if any(asked(each.item) for each in read) if callable(asked) else asked:
            judged, explanation = self.predictor.explain(pixels, kept)
        else:
            judged = self.predictor.judge(pixels, kept)
        for number, photograph in enumerate(read):
            yield partial(self._result, photograph, judged, explanation, number)

    def _result(
        self, read: _Photograph, judged: Judged, explanation: Explanation | None, number: int
    ) -> R:
        """The map of a batch's image, and what `then` makes of it."""
        anomaly_map = read.view.back(self.predictor.maps(judged, number, read.kept))
        columns = {name: float(each[number]) for name, each in judged.columns.items()}
        item, sha256, pixels, view, _ = read
        image = JudgedImage(item, sha256, pixels, anomaly_map, view, columns, explanation, number)
        return self.then(image)

    def finish(self, batch: Iterable[Callable[[], R]]) -> list[R]:
        """The results of a batch."""
        return [each() for each in batch]

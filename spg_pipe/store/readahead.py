"""Reading ahead of the consumer, into memory that is used again and again."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

J = TypeVar("J")
B = TypeVar("B")
R = TypeVar("R")

DEPTH = 2
"""One buffer in the consumer's hands, one being filled."""


def read_ahead(
    jobs: Sequence[J], load: Callable[[J, B], R], buffer: Callable[[], B]
) -> Iterator[R]:
    """Results of `load(job, buffer)` in order, the next one being made in a thread.

    Memory does not grow with the number of jobs.

    Parameters
    ----------
    jobs : sequence
    load : callable
        Fills a buffer and says what it holds. What it raises is raised here.
    buffer : callable
        Makes a buffer; called at most `DEPTH` times.

    Yields
    ------
    The results. One is valid until the next is asked for: then its buffer is filled anew.
    """
    buffers = [buffer() for _ in range(min(DEPTH, len(jobs)))]
    with ThreadPoolExecutor(1, thread_name_prefix="spg-ahead") as thread:
        coming = [
            thread.submit(load, job, place) for job, place in zip(jobs[:1], buffers, strict=False)
        ]
        for i in range(len(jobs)):
            result = coming.pop().result()
            if i + 1 < len(jobs):
                coming.append(thread.submit(load, jobs[i + 1], buffers[(i + 1) % DEPTH]))
            yield result

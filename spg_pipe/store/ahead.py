"""Work that is done ahead of its consumer, in order."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def in_order(pool: Executor, work: Callable[[J], R], jobs: Sequence[J], ahead: int) -> Iterator[R]:
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

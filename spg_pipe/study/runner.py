"""Jobs side by side, each in a process of its own: one for each core, and one thread in each.

Operations on a few images take microseconds, and threads that share one spend most of their time
waiting for each other; whole jobs share nothing. A job in one thread also gives the same bits on
any number of cores, and in a process of its own it shows what memory it needs (`costs`).
"""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from spg_pipe.errors import SpgError

_LIBRARIES = (
    *("faiss", "fsspec", "pandas", "psutil", "pyarrow.parquet", "pydantic", "scipy.ndimage"),
    *("scipy.stats", "sklearn.covariance", "sklearn.linear_model", "torch", "zarr"),
    "torch._dynamo",  # what optimisers import: seconds
)
"""What jobs import, once for all of them where processes can be forked from a common one. None of
this project: the common process may find another copy of it, in the working folder."""
_OWN = ("bank.few_shot", "detector.evaluate", "detector.make", "pipeline.training", "sae.train")

_SECONDS_TO_TIDY = 5
"""For a job that is stopped to remove what is half-written."""


@dataclass(frozen=True)
class Job:
    """Work that can be sent to another process."""

    name: str
    work: Callable[[], Any]
    """A function of a module, or a `partial` of one, whose arguments and result pickle."""
    after: tuple[str, ...] = ()
    """Names of jobs that must be done before; those that are not in the list are done already."""


def workers_for(device: str) -> int:
    """Processes side by side: as many as PyTorch would take threads, and one on a GPU.

    `OMP_NUM_THREADS` limits them as it limits threads.
    """
    import torch

    return torch.get_num_threads() if device == "cpu" else 1


def run_jobs(
    jobs: Sequence[Job], device: str, workers: int | None = None
) -> Iterator[tuple[str, Any]]:
    """Run every job and yield its name and result when it is done; those listed first start first.

    A script that calls this needs the usual `if __name__ == "__main__":`, as processes are not
    forked from it.

    Parameters
    ----------
    jobs : sequence of Job
        With names of their own, none of them after itself.
    device : str
        "cpu": one thread a job. Elsewhere threads are left as they are.
    workers : int, optional
        Processes side by side [default: `workers_for` the device].

    Raises
    ------
    Exception
        What the first job raised that failed; the others are stopped.
    SpgError
        If a process was killed from outside.
    """
    waiting, running = list(jobs), dict[Future[Any], tuple[str, ProcessPoolExecutor]]()
    limit = workers or workers_for(device)
    before = set(multiprocessing.active_children())
    try:
        while waiting or running:
            unfinished = {job.name for job in waiting} | {name for name, _ in running.values()}
            ready = [job for job in waiting if unfinished.isdisjoint(job.after)]
            for job in ready[: limit - len(running)]:
                waiting.remove(job)
                # A pool of one for each job: its process is new, and can be stopped at any time.
                with _signals_wait():  # half of a start would leave a process that nobody knows
                    pool = ProcessPoolExecutor(1, _context(), _prepare, (device,))
                    running[pool.submit(job.work)] = (job.name, pool)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, pool = running[future]
                try:
                    result = future.result()
                except (BrokenProcessPool, SystemExit) as error:  # killed, or ended by SIGTERM
                    raise SpgError(
                        f"The process of {name} ended without a result. If it was killed for its "
                        "memory, run fewer side by side: OMP_NUM_THREADS=1."
                    ) from error
                pool.shutdown()
                del running[future]
                yield name, result
    finally:
        if running:
            pools = [pool for _, pool in running.values()]
            _stop(pools, set(multiprocessing.active_children()) - before)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM count when the block has ended. Only the first thread handles signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])


def _stop(pools: Sequence[ProcessPoolExecutor], processes: Iterable[BaseProcess]) -> None:
    """End jobs in the middle: each removes what is half-written; one that goes on is killed."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + _SECONDS_TO_TIDY
    for process in processes:
        process.join(max(0, end - time.monotonic()))
        process.kill()
    for pool in pools:
        pool.shutdown()  # waits for the pool's thread, whose end Python's own exit would meet


def _context() -> BaseContext:
    if sys.platform != "linux":  # elsewhere libraries do not outlive a fork
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_LIBRARIES])
    resource_tracker.ensure_running()  # it would let signals through again
    # Ctrl-C also reaches the common process, which would say where its imports were interrupted.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _prepare(device: str) -> None:
    """A job's process, before its work: it pays for no import, and ends with the first process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the first process stops the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in (*_LIBRARIES, *(f"spg_pipe.{module}" for module in _OWN)):
        importlib.import_module(name)
    if device == "cpu":
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(1)
        threadpool_limits(1)  # of the libraries that are loaded: BLAS, and OpenMP elsewhere
    signal.signal(signal.SIGTERM, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    """On SIGTERM, once: the job's own blocks remove what is half-written."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if sys.platform != "win32":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            time.sleep(_SECONDS_TO_TIDY)
        os._exit(1)

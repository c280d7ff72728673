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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
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
                pool = ProcessPoolExecutor(1, _context(), _prepare, (device,))
                running[pool.submit(job.work)] = (job.name, pool)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, pool = running[future]
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    raise SpgError(
                        f"The process of {name} ended without a result. If it was killed for its "
                        "memory, run fewer side by side: OMP_NUM_THREADS=1."
                    ) from error
                pool.shutdown()
                del running[future]
                yield name, result
    finally:
        if running:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
        for _, pool in running.values():
            pool.shutdown()


def _context() -> BaseContext:
    if sys.platform != "linux":  # elsewhere libraries do not outlive a fork
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_LIBRARIES])
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


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

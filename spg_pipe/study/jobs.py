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
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from spg_pipe.errors import SpgError

_LIBRARIES = (
    "faiss",
    "fsspec",
    "pandas",
    "psutil",
    "pyarrow.parquet",
    "pydantic",
    "scipy.ndimage",
    "scipy.stats",
    "sklearn.covariance",
    "sklearn.linear_model",
    "torch",
    "zarr",
)
"""What jobs import, once for all of them where processes can be forked from a common one. None of
this project: the common process may find another copy of it, in the working folder."""
_OF_TRAINING = "torch._dynamo"
"""What optimisers import: seconds."""
_OWN = (
    "spg_pipe.study.baselines.mahalanobis",
    "spg_pipe.detector.make",
    "spg_pipe.detector.evaluate",
    "spg_pipe.bank.few_shot",
    "spg_pipe.pipeline.training",
    "spg_pipe.sae.train",
)


@dataclass(frozen=True)
class Job:
    """Work that can be sent to another process."""

    name: str
    work: Callable[[], Any]
    """A function of a module, or a `partial` of one, whose arguments and result pickle."""
    after: tuple[str, ...] = ()
    """Names of jobs that must be done before; those that are not in the list are done already."""


class Done(NamedTuple):
    """A finished job."""

    name: str
    result: Any


class _Running(NamedTuple):
    job: Job
    process: BaseProcess


def workers_for(device: str) -> int:
    """Processes side by side: as many as PyTorch would take threads, and one on a GPU.

    `OMP_NUM_THREADS` limits them as it limits threads.
    """
    import torch

    return torch.get_num_threads() if device == "cpu" else 1


def run_jobs(jobs: Sequence[Job], device: str, workers: int | None = None) -> Iterator[Done]:
    """Run every job and yield it when it is done; those listed first start first.

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
    context = _context()
    waiting = list(jobs)
    running: dict[Connection, _Running] = {}
    limit = workers or workers_for(device)
    try:
        while waiting or running:
            open_ = {job.name for job in waiting} | {one.job.name for one in running.values()}
            ready = [job for job in waiting if open_.isdisjoint(job.after)]
            for job in ready[: limit - len(running)]:
                waiting.remove(job)
                pipe, process = _started(context, job, device)
                running[pipe] = _Running(job, process)
            ended = wait(list(running))
            for pipe in [one for one in running if one in ended]:
                job, process = running[pipe]
                result = _received(pipe, job, process)
                del running[pipe]
                yield Done(job.name, result)
    finally:
        for _, process in running.values():
            process.terminate()
        for pipe, (_, process) in running.items():
            process.join()
            pipe.close()


def _context() -> Any:
    if sys.platform != "linux":  # elsewhere libraries do not outlive a fork
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_LIBRARIES, _OF_TRAINING])
    return context


def _started(context: Any, job: Job, device: str) -> tuple[Connection, BaseProcess]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, theirs, device), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _received(pipe: Connection, job: Job, process: BaseProcess) -> Any:
    try:
        fault, result = pipe.recv()
    except EOFError as error:
        process.join()
        raise SpgError(
            f"The process of {job.name} ended with {process.exitcode} and without a result. If it "
            "was killed for its memory, run fewer side by side: OMP_NUM_THREADS=1."
        ) from error
    finally:
        pipe.close()
    process.join()
    if fault is not None:
        raise fault
    return result


def _work(job: Job, pipe: Connection, device: str) -> None:
    """In the job's own process."""
    answer: tuple[Exception | None, Any]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the first process stops the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for name in (*_LIBRARIES, *_OWN):  # no job is to pay for them
            importlib.import_module(name)
        if device == "cpu":
            _one_thread()
        answer = (None, job.work())
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        answer = (error, None)
    pipe.send(answer)


def _one_thread() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)  # of the libraries that are loaded: BLAS, and OpenMP elsewhere


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

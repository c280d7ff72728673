"""Units of work on the workers of a Dask cluster: a bounded window of them at a time, and again
where a worker died. The only module that imports `distributed`."""

import asyncio
import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

import dask
import torch
from distributed import Client, Future, LocalCluster, WorkerPlugin, get_worker, wait
from distributed.comm import CommClosedError, connect
from distributed.core import Status
from distributed.scheduler import KilledWorker
from distributed.security import Security
from threadpoolctl import threadpool_limits

from spg_pipe.artefacts.files import versions
from spg_pipe.errors import SpgError, counted
from spg_pipe.recipe.machine import local_workers
from spg_pipe.store.begin import other_versions

U = TypeVar("U")
R_co = TypeVar("R_co", covariant=True)
U_contra = TypeVar("U_contra", contravariant=True)
R = TypeVar("R")
Say = Callable[[str], None]

_AHEAD = 2
"""Units a thread of the cluster that are submitted at once: one that runs and one that waits."""
_PARTS = 4
"""Of the window: as much of it is submitted together, for Dask keeps a note of each submission."""
_TRIES = 10
"""Of a unit whose workers die. Dask itself tries a unit on four workers before it gives up."""
_SECONDS_A_LOOK = 5
"""After which the workers are counted again."""
_SECONDS = 300
"""Until a cluster without workers is given up: a busy machine takes a minute to start one."""
_SECONDS_TO_SAY = 10
"""After which it is said that no worker is there."""
_SECONDS_TO_CONNECT = 30


class Job(Protocol[U_contra, R_co]):
    """What is sent to each worker once: its `open` loads what all units need."""

    def open(self) -> Callable[[U_contra], R_co]:
        """What computes a unit; an `SpgError` of it ends the run."""
        ...


@dataclass(frozen=True)
class Failure:
    """An `SpgError` of a unit: what went wrong for a person, not for the cluster."""

    message: str
    worker: str = ""
    """Its address."""


_DIED = object()
"""In the place of a result: its worker died."""


class _Opened(WorkerPlugin, Generic[U, R]):
    """A job on a worker: Dask gives it to each, to those that come later as well."""

    def __init__(self, name: str, job: Job[U, R]) -> None:
        self.name, self._job = name, job
        self._threads, self._versions = torch.get_num_threads(), versions()

    def setup(self, worker: object) -> None:
        """As Dask calls it when it gives the job to a worker: nothing is loaded yet."""
        self._lock = Lock()
        self._compute: Callable[[U], R] | None = None

    def unit(self, unit: U) -> R | Failure:
        """Compute one unit, with as many threads as the client would: bits may depend on that."""
        try:
            with self._lock:
                if self._compute is None:
                    if other := other_versions(self._versions, versions()):
                        return Failure(
                            "A worker has other versions than this process: "
                            f"{', '.join(other)}. Install the same."
                        )
                    self._compute = self._job.open()
            torch.set_num_threads(self._threads)
            with threadpool_limits(self._threads):
                return self._compute(unit)
        except SpgError as error:
            return Failure(str(error))


def _unit(name: str, unit: object) -> object:
    """What Dask runs on a worker."""
    worker = get_worker()
    result = worker.plugins[name].unit(unit)  # type: ignore[attr-defined]
    return replace(result, worker=worker.address) if isinstance(result, Failure) else result


class Workers:
    """The workers of a cluster."""

    def __init__(self, client: Client, where: str, say: Say, revive: Callable[[], None]) -> None:
        self._client, self._where, self._say, self._revive = client, where, say, revive
        self._threads, self._counted, self._submitted = 0, -math.inf, count()

    @contextmanager
    def serving(self, job: Job[U, R]) -> Iterator[Callable[[Iterable[U]], Iterator[tuple[U, R]]]]:
        """What computes units of a job: each with its result, in the order in which they end.

        An `SpgError` if one of them ends so, if its workers die again and again, or if the
        cluster is lost.
        """
        name = f"spg-pipe-{uuid4().hex}"
        try:
            self._client.register_plugin(_Opened(name, job))
        except Exception as error:  # whatever a worker raises that cannot read what it is sent
            raise SpgError(
                f"The workers of {self._where} cannot take the work ({type(error).__name__}: "
                f"{error}). Install spg-pipe there, in the same version as here."
            ) from error
        try:
            yield lambda units: self._results(name, units)
        finally:
            if self._client.status == "running":
                with suppress(OSError):  # the scheduler has just ended
                    self._client.unregister_worker_plugin(name)

    def _results(self, name: str, units: Iterable[U]) -> Iterator[tuple[U, R]]:
        try:
            yield from self._computed(name, units)
        except SpgError:
            raise
        except Exception as error:  # without its scheduler, Dask's client raises several kinds
            lost = isinstance(error, CancelledError | CommClosedError)
            if lost or self._client.status != "running":
                raise self._lost() from error
            raise

    def _computed(self, name: str, units: Iterable[U]) -> Iterator[tuple[U, R]]:
        tries, running = Counter[int](), dict[Future, tuple[int, U]]()
        numbered = zip(count(), iter(units), strict=False)
        while True:
            room = self._room()
            free = room - len(running)
            if free >= max(1, room // _PARTS) or not running:
                together = list(islice(numbered, max(free, 1)))
                running |= self._submit(name, together) if together else {}
            if not running:
                return
            for future in self._ended(running):
                number, unit = running.pop(future)
                result = self._result(future)
                if result is not _DIED:
                    yield unit, result
                    continue
                tries[number] += 1
                if tries[number] == _TRIES:
                    raise SpgError(
                        f"Worker after worker of {self._where} died with the same unit of work, "
                        f"number {number}: perhaps they lack memory. Use fewer or larger workers."
                    )
                running |= self._submit(name, [(number, unit)])

    def _room(self) -> int:
        """How many units may be submitted at once; workers come and go."""
        if (now := time.monotonic()) - self._counted > 1:  # asking takes milliseconds
            self._revive()
            self._threads, self._counted = sum(self._client.nthreads().values()), now
        return _AHEAD * self._threads

    def _submit(self, name: str, numbered: list[tuple[int, U]]) -> dict[Future, tuple[int, U]]:
        # Of each unit its own key: of an equal one Dask would give the earlier result.
        keys = [f"{name}-{next(self._submitted)}" for _ in numbered]
        units = [unit for _, unit in numbered]
        futures = self._client.map(partial(_unit, name), units, key=keys, pure=False)
        return dict(zip(futures, numbered, strict=True))

    def _ended(self, running: Mapping[Future, object]) -> list[Future]:
        """The futures that are done, at least one."""
        seen, said = time.monotonic(), False
        while True:
            try:
                wait(list(running), timeout=_SECONDS_A_LOOK, return_when="FIRST_COMPLETED")
            except TimeoutError:
                if self._room():
                    seen, said = time.monotonic(), False
                elif time.monotonic() - seen > _SECONDS:
                    raise self._lost() from None
                elif time.monotonic() - seen > _SECONDS_TO_SAY and not said:
                    self._say(f"{self._where}: no worker is there; waiting {_SECONDS} s for one.")
                    said = True
                continue
            return [future for future in running if future.done()]

    def _result(self, future: Future) -> Any:
        """The result of a unit, or `_DIED`; an `SpgError` if the unit failed."""
        try:
            result = future.result()
        except (KilledWorker, CommClosedError):
            return _DIED
        if not isinstance(result, Failure):
            return result
        if local_workers(self._where) is not None:
            raise SpgError(result.message)
        raise SpgError(
            f"On the worker {result.worker}: {result.message} If it is otherwise here, that worker "
            "sees other files: workers need the same folders at the same paths."
        )

    def _lost(self) -> SpgError:
        return SpgError(
            f"The scheduler or all workers of {self._where} are gone. What is finished stays: "
            "start them again, and give the same command again."
        )


@contextmanager
def opened(cluster: str, say: Say) -> Iterator[Workers]:
    """The workers of `local[:N]`, which are started and end here, or of a scheduler's address.

    `say` is told when none is there. An `SpgError` if there is no such cluster.
    """
    if (number := local_workers(cluster)) is None:
        with _connected(cluster, cluster) as client:
            yield Workers(client, cluster, say, lambda: None)
        return
    # The workers' number of threads is the client's, as `_Opened.unit` sets it.
    settings: dict[str, object] = {
        "distributed.nanny.pre-spawn-environ": {},
        "distributed.deploy.lost-worker-timeout": "60s",
    }
    with (
        tempfile.TemporaryDirectory() as scratch,
        dask.config.set(settings),
        _quiet("asyncio", "tornado.application"),
        LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
        ) as started,
        _connected(started, counted(number, "local worker")) as client,
    ):
        yield Workers(client, cluster, say, partial(_revive, started, number))


def _revive(cluster: LocalCluster, number: int) -> None:
    """Start processes until there are so many: Dask gives up those that died while they started."""
    for name, nanny in dict(cluster.workers).items():
        if nanny.status in (Status.failed, Status.closed):
            cluster.workers.pop(name, None)
    cluster.scale(number)


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Keep what Dask logs of workers and schedulers that die off the terminal: it is no news."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


async def _require_scheduler(address: str) -> None:
    """OSError where none answers: a client waits without an end for another program's answer."""
    arguments = Security().get_connection_args("client")
    connecting = connect(address, timeout=_SECONDS_TO_CONNECT, **arguments)
    with _quiet("distributed.protocol.core"):
        (await asyncio.wait_for(connecting, _SECONDS_TO_CONNECT + 1)).abort()


@contextmanager
def _connected(address: object, where: str) -> Iterator[Client]:
    if where.startswith("tls") and not Security().get_connection_args("client")["ssl_context"]:
        raise SpgError(
            f"{where} needs certificates, and Dask's configuration names none. Set "
            "distributed.comm.tls there (DASK_DISTRIBUTED__COMM__TLS__CA_FILE, …), as its page on "
            "TLS says."
        )
    try:
        if isinstance(address, str):
            asyncio.run(_require_scheduler(address))
        # Not the default: whoever computes a Dask array later means no cluster that has ended.
        client = Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except Exception as error:  # another program's bytes, taken for Dask's, raise anything
        why = str(error) if isinstance(error, OSError | ValueError) else "another program does"
        raise SpgError(
            f"No Dask scheduler answers at {where} ({why or 'nothing came'}). Start one by "
            "`dask scheduler`, or check the address that it prints."
        ) from error
    with _quiet("distributed.client"), client, client.as_current():
        yield client

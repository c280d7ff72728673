"""What is served, and how a request waits for its image."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request

from spg_pipe.deploy.serving.bounds import Bounds, RefusedError, check_header
from spg_pipe.deploy.serving.counts import Counts
from spg_pipe.deploy.serving.waiting import Answer, Waiting, Wanted
from spg_pipe.errors import printable
from spg_pipe.predict.items import Item

VERSION = "1"
"""Of the one model; a changed detector is another server."""
_OUTPUTS = {"map": ("FP32", [-1, -1]), "score": ("FP64", [1]), "decision": ("BOOL", [1])}
"""Output → its type and shape."""


@dataclass(frozen=True)
class Service:
    """What is served."""

    name: str
    """Of the model, in addresses."""
    waiting: Waiting
    decides: bool
    """There is a threshold of scores."""
    bounds: Bounds = field(default_factory=Bounds)
    counts: Counts = field(default_factory=Counts)
    parsing: CapacityLimiter = field(default_factory=partial(CapacityLimiter, 2))
    """Threads that read and write tensors: as JSON these are ten times as large as their bytes."""
    valid_until: date | None = None
    """The last day of the calibration; None: as long as its conditions hold."""

    @property
    def outputs(self) -> dict[str, tuple[str, list[int]]]:
        """Those of the model → type and shape."""
        return {k: v for k, v in _OUTPUTS.items() if k != "decision" or self.decides}

    def require_model(self, name: str, version: str = VERSION) -> None:
        """A `RefusedError` for another model or version."""
        if (name, version) != (self.name, VERSION):
            other = f"Model {printable(name)!r}, version {printable(version)!r}, is not served"
            raise RefusedError(404, f"{other}: expected is {self.name!r}, version {VERSION!r}.")

    def require_ready(self) -> None:
        """A `RefusedError` while no image is taken."""
        if not self.waiting.ready:
            raise RefusedError(503, "The server is being stopped: ask another one.", retry=10)
        if self.valid_until is not None and date.today() > self.valid_until:
            last = f"The calibration that decides held until {self.valid_until}"
            raise RefusedError(503, f"{last}: make another (spg-pipe calibrate), and serve anew.")

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for an image from its head to its answer, and `bounds.seconds` for all of that.

        A `RefusedError` without a place, or after that time.
        """
        self.require_ready()
        with self.waiting.place():
            try:
                async with asyncio.timeout(self.bounds.seconds):
                    yield
            except TimeoutError:
                late = f"The image was not judged within {self.bounds.seconds:g} s (--seconds)."
                raise RefusedError(503, f"{late} Send it again.", retry=1) from None

    async def judged(self, request: Request, item: Item, wanted: Wanted) -> Answer:
        """What is said of an image; a `RefusedError`, or a `ClientDisconnect` if nobody waits."""
        if isinstance(item.source, bytes):
            await to_thread.run_sync(check_header, item.source, self.bounds)
        if wanted.explain and self.waiting.how.predictor.alone:
            raise RefusedError(400, "A bank alone uses no guides, so nothing can be explained.")
        answer = asyncio.wrap_future(self.waiting.judged(item, wanted))
        left = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {answer, left}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise ClientDisconnect
        finally:
            answer.cancel()
            left.cancel()


async def _disconnected(request: Request) -> None:
    """Until the client breaks the connection off."""
    while (await request.receive())["type"] != "http.disconnect":
        continue

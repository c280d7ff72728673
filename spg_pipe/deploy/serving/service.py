"""What is served, and how a request waits for its image."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
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

    @property
    def outputs(self) -> dict[str, tuple[str, list[int]]]:
        """Those of the model → type and shape."""
        return {k: v for k, v in _OUTPUTS.items() if k != "decision" or self.decides}

    def require_model(self, name: str, version: str = VERSION) -> None:
        """A `RefusedError` for another model or version."""
        if (name, version) != (self.name, VERSION):
            found = f"Model {printable(name)!r}, version {printable(version)!r}, is not served"
            raise RefusedError(404, f"{found}: expected is {self.name!r}, version {VERSION!r}.")

    def check_header(self, name: str, content: bytes) -> None:
        """See `bounds.check_header`."""
        check_header(name, content, self.bounds, exif=self.waiting.reading.exif)

    async def judged(
        self, request: Request, read: Callable[[], tuple[Item, Wanted]], by: float
    ) -> Answer:
        """What is said of a request's image before the loop's time `by`; a `RefusedError` after it.

        `read` is called in a thread.
        """
        item, wanted = await to_thread.run_sync(read)
        if wanted.explain and self.waiting.how.predictor.alone:
            raise RefusedError(400, "A bank alone uses no guides, so nothing can be explained.")
        answer = asyncio.wrap_future(self.waiting.judged(item, wanted))
        gone = asyncio.ensure_future(_gone(request))
        left = max(by - asyncio.get_running_loop().time(), 0)
        either: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            late = f"The image was not judged within {self.bounds.seconds:g} s (--seconds)."
            raise RefusedError(503, f"{late} Send it again.", retry=1)
        finally:
            answer.cancel()
            gone.cancel()


async def _gone(request: Request) -> None:
    """Until the client breaks the connection off."""
    while (await request.receive())["type"] != "http.disconnect":
        continue

"""A server from its first request to its last."""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from spg_pipe.deploy.serving.app import Service, make_app
from spg_pipe.deploy.serving.waiting import Waiting
from spg_pipe.errors import SpgError

_OTHERS = 100
"""Connections at once, besides those of images in hand: health, metrics, pages, refusals."""
_IDLE_SECONDS = 60
"""For which a connection is kept without a request: one part a minute needs no new one."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that will listen at an address; an `SpgError` if it cannot be had."""
    advice = "Name another with --port, or an address of this machine with --host."
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: a part of the name is empty or long
        raise SpgError(f"The host {host!r} is not known: {error}. {advice}") from error
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise SpgError(f"Port {port} of {host} cannot be used: {reason}. {advice}") from error
    return listening


def address_of(listening: socket.socket) -> str:
    """The address of a page there."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def run(service: Service, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; then finish the images in hand. A second signal ends at once.

    `on_ready` is called as soon as the server answers.
    """
    waiting, bounds, ready = service.waiting, service.bounds, False

    async def each_second() -> None:
        nonlocal ready
        if not ready:
            ready = True
            on_ready()
        if waiting.closed and not waiting.in_hand:
            server.should_exit = True

    server = _Server(
        uvicorn.Config(
            make_app(service),
            http=_connections(bounds.body_seconds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=bounds.images + _OTHERS,
            timeout_keep_alive=_IDLE_SECONDS,
            callback_notify=each_second,  # in which a balancer sees that images are refused
            timeout_notify=0,
            timeout_graceful_shutdown=int(bounds.seconds) + 1,
        )
    )
    server.waiting = waiting
    waiting.start()
    server.run([listening])
    if not server.force_exit:
        waiting.end(bounds.seconds)


class _Server(uvicorn.Server):
    """On a first signal images are refused, and it ends when none is in hand."""

    waiting: Waiting

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = self.force_exit = self.waiting.closed
        self.waiting.close()


def _connections(seconds: float) -> type[H11Protocol]:
    """Connections that are closed unless the head of a request arrives within so many seconds.

    uvicorn has a limit only for those that had a request and are silent since. They all count as
    connections at once, so that some that never say a word would shut everybody out.
    """

    class Connection(H11Protocol):
        _end: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._limit()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._limit()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._end:
                self._end.cancel()
            super().connection_lost(exc)

        def _limit(self) -> None:
            """Count the seconds from the first byte; what follows does not prolong them."""
            if self.cycle is not None and not self.cycle.response_complete:  # a request is served
                if self._end:
                    self._end.cancel()
                    self._end = None
            elif self._end is None:
                self._end = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    return Connection

"""A server from its first request to its last."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from spg_pipe.deploy.serving.app import Service, make_app
from spg_pipe.errors import SpgError

_OTHERS = 100
"""Connections at once, besides those of images in hand: health, metrics, pages, refusals."""
_IDLE_SECONDS = 60
"""For which a connection is kept without a request: one part a minute needs no new one."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that will listen at an address; an `SpgError` if it cannot be had."""
    made: socket.socket | None = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        if made is not None:
            made.close()
        raise SpgError(
            f"Port {port} of {host} cannot be used: {error.strerror}. Name another with --port, or "
            "an address of this machine with --host."
        ) from error
    return made


def address_of(listening: socket.socket) -> str:
    """The address of a page there."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def run(service: Service, listening: socket.socket, said: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; then finish the images in hand. A second signal ends at once.

    `said` is called as soon as the server answers.
    """
    waiting, bounds, begun = service.waiting, service.bounds, False

    async def look() -> None:
        nonlocal begun
        if not begun:
            begun = True
            said()
        if waiting.closed and not waiting.in_hand:
            server.should_exit = True

    server = uvicorn.Server(
        uvicorn.Config(
            make_app(service),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=bounds.images + _OTHERS,
            timeout_keep_alive=_IDLE_SECONDS,
            callback_notify=look,
            timeout_notify=0,  # every second, in which a balancer sees that images are refused
            timeout_graceful_shutdown=int(bounds.seconds) + 1,
        )
    )

    def stop(sig: int, frame: FrameType | None) -> None:
        server.should_exit = server.force_exit = waiting.closed
        waiting.close()

    server.handle_exit = stop  # type: ignore[method-assign]
    waiting.start()
    server.run([listening])
    if not server.force_exit:
        waiting.end()

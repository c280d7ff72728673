"""A server on a loopback port, in a thread of this process, and what is sent to it."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from tiny import TinyBackbone

from spg_pipe.decision.calibration import by_hand
from spg_pipe.deploy.serving.bounds import Bounds
from spg_pipe.deploy.serving.counts import Counts
from spg_pipe.deploy.serving.run import address_of, bound_socket, run
from spg_pipe.deploy.serving.service import Service
from spg_pipe.deploy.serving.waiting import Waiting
from spg_pipe.detector.model import Detector
from spg_pipe.predict.finish import Finish
from spg_pipe.predict.items import Reading
from spg_pipe.predict.predictor import Predictor

INFER = "/v2/models/tiny/infer"
TINY = {"name": "image", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [0, 1, 2, 3, 4, 5]}


class Gate(TinyBackbone):
    """A backbone that judges while its gate is open, and says when it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.waits = threading.Event(), threading.Event()
        self.open.set()
        self.batches: list[int] = []
        self.breaks: Exception | None = None

    def __call__(self, images):  # type: ignore[no-untyped-def]
        self.batches.append(len(images))
        self.waits.set()
        assert self.open.wait(60)
        if self.breaks:
            error, self.breaks = self.breaks, None
            raise error
        return super().__call__(images)


@dataclass(frozen=True)
class Server:
    """One that runs."""

    url: str
    service: Service
    gate: Gate
    client: httpx.Client

    @property
    def address(self) -> tuple[str, int]:
        """Of its socket."""
        return self.client.base_url.host, int(self.client.base_url.port or 0)

    def count(self, name: str, **labels: str) -> float:
        """What a counter says."""
        return self.service.counts.registry.get_sample_value(name, labels) or 0.0

    def raw(self, data: bytes) -> bytes:
        """What comes back for some bytes, until the server closes."""
        with socket.create_connection(self.address, timeout=30) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@contextmanager
def served(
    detector: Detector,
    bounds: Bounds | None = None,
    threshold: float | None = 0.5,
    name: str = "tiny",
    valid_until: date | None = None,
) -> Iterator[Server]:
    """A server of a detector with the tiny backbone."""
    gate, counts, bounds = Gate(), Counts(), bounds or Bounds()
    limits = by_hand(threshold, 0.5)

    how = Finish(
        Predictor(detector, gate), Path(), limits=lambda _: limits, overlays=False, explained=False
    )
    waiting = Waiting(
        how, Reading(strict_white=True), bounds.images, lambda _, line: counts.judged(line)
    )
    service = Service(name, waiting, threshold is not None, bounds, counts, valid_until=valid_until)
    listening, begun = bound_socket("127.0.0.1", 0), threading.Event()
    thread = threading.Thread(target=run, args=(service, listening, begun.set))
    thread.start()
    assert begun.wait(60)
    url = address_of(listening)
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Server(url, service, gate, client)
    finally:
        gate.open.set()
        waiting.close()
        thread.join(60)
    assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    """Wait for what other threads bring about; a test that waits for a minute has failed."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def picture(size: tuple[int, int] = (40, 48), seed: int = 0, kind: str = "PNG") -> bytes:
    """A noisy image's file, of (height, width) pixels."""
    data = io.BytesIO()
    Image.fromarray(pixels(size, seed)).save(data, kind)
    return data.getvalue()


def pixels(size: tuple[int, int] = (40, 48), seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def refused(server: Server, status: int, *words: str, path: str = "/predict", **given: Any) -> None:
    """The request is refused, with these words, and the next one is answered."""
    answer = server.client.post(path, **given)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    for word in words:
        assert word in answer.json()["error"]
    assert server.client.post("/predict", content=picture()).status_code == 200

"""What a server counts, for Prometheus; it holds nothing of an image."""

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spg_pipe.deploy.serving.waiting import Waiting
from spg_pipe.predict.result import Line, Result

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Counts:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "spg_requests", "Requests.", ["endpoint", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "spg_request_seconds",
            "From a request's head to the end of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "spg_images",
            "Images that were judged: normal, anomalous, undecided; or unreadable.",
            ["decision"],
            registry=self.registry,
        )
        self.refused_bytes = Counter(
            "spg_refused_bytes",
            "Bytes of bodies that were too long, as stated or until then.",
            registry=self.registry,
        )
        self.drift = Counter("spg_drift_warnings", "Warnings of drift.", registry=self.registry)
        hand, queue = "Images arriving, waiting or being judged.", "Images that wait."
        self._in_hand = Gauge("spg_in_hand", hand, registry=self.registry)
        self._queued = Gauge("spg_queued", queue, registry=self.registry)

    def watch(self, waiting: Waiting) -> None:
        """Count what is in hand."""
        self._in_hand.set_function(lambda: waiting.in_hand)
        self._queued.set_function(lambda: waiting.queued)

    def judged(self, line: Line) -> None:
        """Count an image."""
        decided = (line.decision or "undecided") if isinstance(line, Result) else "unreadable"
        self.images.labels(decided).inc()

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


def counted(app: ASGIApp, counts: Counts, known: Callable[[Scope], str]) -> ASGIApp:
    """An app whose requests are counted by endpoint (what `known` says) and status."""

    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        began, status = time.monotonic(), "broken off"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await app(scope, receive, watched)
        finally:
            endpoint = known(scope)
            counts.requests.labels(endpoint, status).inc()
            counts.seconds.labels(endpoint).observe(time.monotonic() - began)

    return count

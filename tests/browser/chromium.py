"""Chromium without a window, driven by its DevTools protocol over two pipes: no driver needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_LONGEST = 60.0
"""Seconds that an answer may take; a cold start on a busy machine takes ten."""


def executable() -> str | None:
    """Where Chromium is, if it is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Chromium:
    """A running browser with one page."""

    commands: int
    """The pipe that it reads."""
    answers: int
    """The pipe that it writes."""
    session: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    """What the page reported, oldest first."""
    _number: int = 0
    _read: bytes = b""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _LONGEST
        while (answer := self._next(until)).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait(self, method: str) -> None:
        """Read until the page reports something."""
        until = time.monotonic() + _LONGEST
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._next(until))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, awaited if it is a promise."""
        options = {"returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", expression=expression, **options)["result"].get(
            "value"
        )

    def open(self, page: Path, *, width: int, dark: bool) -> None:
        """Load a file as a window of a width in a scheme of colours shows it; events begin anew."""
        self.events.clear()
        sized = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **sized)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("Page.loadEventFired")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """What the window shows, or the page in full length, as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        asked = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in asked]

    def complaints(self) -> list[str]:
        """What the console holds: errors and warnings of the browser, output, exceptions."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in kinds]

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self.answers], [], [], max(0, until - time.monotonic()))
            assert ready, "Chromium did not answer"
            part = os.read(self.answers, 2**20)
            assert part, "Chromium ended"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)


@contextmanager
def chromium(path: str) -> Iterator[Chromium]:
    """Start a browser with a profile of its own; it is ended with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        theirs_in, ours_out = map(_high, os.pipe())
        ours_in, theirs_out = map(_high, os.pipe())
        null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        pipes = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4), null]
        arguments = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = os.posix_spawn(path, arguments, os.environ, file_actions=pipes, setpgroup=0)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            browser = Chromium(ours_out, ours_in)
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
            browser.session = attached["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                browser.call(f"{domain}.enable")
            yield browser
        finally:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(ours_out)
            os.close(ours_in)


def _high(descriptor: int) -> int:
    """The same file under a number that the child's 3 and 4 cannot collide with."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return copy

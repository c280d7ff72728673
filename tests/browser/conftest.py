"""Debian's Chromium, driven by Playwright: every page is watched while a test looks at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from spg_pipe.detector.model import Detector

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
expect.set_options(timeout=30_000)  # a loaded machine judges an image in seconds
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass
class Visit:
    """A page, and what it did since it was opened."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses that it asked for."""
    complaints: list[str] = field(default_factory=list)
    """What its console holds, errors that nobody caught, requests that failed."""

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, awaited if it is a promise."""
        return self.page.evaluate(expression)

    def foreign(self) -> list[str]:
        """Requests that left files and this machine."""
        return [url for url in self.requests if not _is_local(url)]

    def serious(self) -> list[str]:
        """What axe-core finds to be serious or critical: the rule, and where."""
        # It would load style sheets again, by requests that a page of ours forbids.
        options = {"resultTypes": ["violations"], "preload": False}
        found = Axe().run(self.page, options=options).response["violations"]
        return [
            f"{each['id']}: {node['target']} {node['failureSummary']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]


def _failures(request: Request) -> list[str]:
    """What to say of a request that failed: nothing where another page was opened meanwhile."""
    aborted = request.failure == "net::ERR_ABORTED"
    return [] if aborted else [f"failed: {request.url} ({request.failure})"]


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme in ("http", "ws"):
        return parts.hostname in LOOPBACK
    return parts.scheme in ("file", "data", "blob", "about")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all pages."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("Chromium is not installed: `apt-get install chromium` on Debian")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens a file or an address; in the end no page may have complained or asked elsewhere."""
    visits: list[Visit] = []

    def opened(
        where: Path | str,
        *,
        width: int = 1280,
        dark: bool = False,
        medium: Literal["screen", "print"] = "screen",
        scripts: bool = True,
    ) -> Visit:
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
        )
        made = Visit(context.new_page())
        visits.append(made)
        context.on("request", lambda request: made.requests.append(request.url))
        context.on("console", lambda message: made.complaints.append(message.text))
        context.on("weberror", lambda error: made.complaints.append(str(error.error)))
        context.on("requestfailed", lambda request: made.complaints.extend(_failures(request)))
        made.page.emulate_media(media=medium)
        made.page.goto(where.resolve().as_uri() if isinstance(where, Path) else where)
        return made

    yield opened
    for each in visits:
        each.page.context.close()
        assert each.complaints == []
        assert each.foreign() == []


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory, tiny_detector: Detector) -> dict[str, Path]:
    """Name → page, each made once."""
    from browser.world import made_pages

    return made_pages(tmp_path_factory.mktemp("browser"), tiny_detector)

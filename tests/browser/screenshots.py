"""Takes the pictures of the docs: `python tests/browser/screenshots.py demo_run docs/images`."""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
DIRECTION, CATEGORY = "demo-mvtec--demo-visa", "wood"
PORT = "8123"


def main() -> None:
    """Open the demo's pages and photograph them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="the folder of `make demo`")
    parser.add_argument("out", type=Path, help="where the JPEGs go")
    options = parser.parse_args()
    artifacts = options.demo.resolve() / "artifacts"
    gallery = artifacts / "report" / "demo" / DIRECTION
    defects = artifacts / "demo" / "demo-visa" / CATEGORY / "Data" / "Images" / "Anomaly"
    detector = next(artifacts.glob("detectors/demo/demo-mvtec-*-s111"))
    path = next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = opened(browser, gallery / "index.html", 1450)
        take(page, options.out / "gallery.jpg")
        page.locator("#gallery figure a").first.click()
        page.wait_for_url("**/images/*.html")
        take(page, options.out / "image-page.jpg")
        with serving(detector) as address:
            page = opened(browser, address, 1150)
            page.set_input_files("#file", sorted(defects.iterdir())[0])
            page.locator("#result").wait_for()
            take(page, options.out / "drop-page.jpg")
        browser.close()


def opened(browser: Browser, where: Path | str, height: int) -> Page:
    page = browser.new_page(viewport={"width": 1000, "height": height})
    page.goto(where.as_uri() if isinstance(where, Path) else where)
    page.wait_for_load_state("networkidle")
    return page


def take(page: Page, path: Path) -> None:
    """What the window shows; a JPEG of fewer than 200 KB."""
    page.wait_for_load_state("networkidle")
    page.screenshot(path=path, type="jpeg", quality=80)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


@contextmanager
def serving(detector: Path) -> Iterator[str]:
    """The address of `spg-pipe serve`, once it says that it is ready."""
    code = "from spg_pipe.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(detector), "--port", PORT]
    process = subprocess.Popen(
        [*command, "--threshold", "-4", "--pixel-threshold", "0.67"],
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        for line in process.stdout:
            if f":{PORT}" in line:
                break
        yield f"http://127.0.0.1:{PORT}"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()

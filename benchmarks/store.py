"""The feature store against a memory map, one .pth an image, and other Zarr readers.

    python -m benchmarks.store [--images 512] [--folder DIR] [--photos DIR]

Each pattern is read by every format in turn, in interleaved rounds; the ratios are of medians. Cold
means that the pages were dropped and that `mincore` found none of them; seconds stand beside each
ratio. The last line is one JSON object with the ratios (larger is better for us).
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import page_cache, store_formats
from benchmarks.extract_overhead import overhead
from benchmarks.store_formats import Format
from benchmarks.timing import machine
from spg_pipe.store.reader import FeatureStore

ROUNDS = 9
GROUP, SEQUENCE = 8, 64
Work = Callable[[Format, int], None]


def sequential(form: Format, images: int) -> None:
    """All images in order, 64 at a time, into one piece of memory."""
    _read(form, np.arange(images), SEQUENCE)


def groups(form: Format, images: int) -> None:
    """All images in random groups of 8, into one piece of memory."""
    _read(form, np.random.default_rng(1).permutation(images), GROUP)


def _read(form: Format, order: np.ndarray, size: int) -> None:
    jobs = [order[start : start + size] for start in range(0, len(order), size)]
    seen = sum(len(tokens) for tokens in form.read(jobs))
    assert seen == len(order), (form.name, seen)


def tokens(form: Format, images: int) -> None:
    """An epoch of shuffled batches of 8192 tokens, as SAE training takes them."""
    seen = sum(len(batch) for batch in form.tokens(1))
    assert seen == images * store_formats.PATCHES, (form.name, seen)


PATTERNS: dict[str, Work] = {"sequential": sequential, "groups of 8": groups, "tokens": tokens}
SLOW = {"zarr-python", "zarrs", "tensorstore"}
"""Two warm rounds, three cold ones, to keep the run short; in no ratio of the last line."""


def measure(forms: list[Format], work: Work, images: int, *, cold: bool) -> dict[str, float]:
    """Median seconds of each format, interleaved."""
    seconds: dict[str, list[float]] = {form.name: [] for form in forms}
    for number in range(ROUNDS + (not cold)):
        # Each takes every place in the round: who comes after whom must not matter.
        for form in forms[number % len(forms) :] + forms[: number % len(forms)]:
            if form.name in SLOW and number > 2:
                continue
            if cold:
                form.release()
                page_cache.drop(form.files)
                left = page_cache.resident_share(form.files)
                if left > 0.01:
                    raise SystemExit(f"{form.name}: {left:.0%} of the pages stayed in memory")
            start = time.perf_counter()
            work(form, images)
            if cold or number:  # the first warm round only warms
                seconds[form.name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, seconds: dict[str, float], megabytes: dict[str, float]) -> None:
    """Print seconds, rate of what is on disk, and the ratio to the store."""
    print(f"\n{title}\n| format | seconds | MB/s on disk | store is faster by |\n|---|---|---|---|")
    for name, value in seconds.items():
        print(
            f"| {name} | {value:.3f} | {megabytes[name] / value:,.0f} | "
            f"{value / seconds['store']:.2f}× |"
        )


def write_table(folder: Path, store: FeatureStore) -> None:
    """Print what it takes to write a shard of 128 images in each format."""
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, write in store_formats.writers(folder, store).items():
            start = time.perf_counter()
            write()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    shutil.rmtree(folder)
    print("\nwrite 128 images, fsync included\n| format | seconds |\n|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.3f} |")


def main() -> None:
    """Print the tables and the line of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="keep the files here, and reuse them")
    parser.add_argument(
        "--photos", type=Path, help="a folder of photographs for extract_vs_backbone"
    )
    options = parser.parse_args()
    print(
        f"{machine()}; {options.images} images × {store_formats.PATCHES} × {store_formats.DIM}; "
        f"medians of {ROUNDS} rounds in turn (of fewer for {', '.join(SLOW)})"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        store = store_formats.write_store(folder, options.images)
        write_table(folder / "write", store)
        forms = store_formats.formats(folder, store)
        sizes = {form.name: form.bytes / 1e6 for form in forms}
        found: dict[tuple[str, bool], dict[str, float]] = {}
        for name, work in PATTERNS.items():
            for cold in (False, True):
                found[name, cold] = measure(forms, work, options.images, cold=cold)
                table(f"{name}, {'cold' if cold else 'warm'}", found[name, cold], sizes)
    ratios = {
        "seq_warm_vs_memmap": _ratio(found["sequential", False], "memmap .npy"),
        "seq_warm_vs_pth": _ratio(found["sequential", False], "pth an image"),
        "seq_cold_vs_pth": _ratio(found["sequential", True], "pth an image"),
        "groups_cold_vs_pth": _ratio(found["groups of 8", True], "pth an image"),
        "tokens_warm_vs_pth": _ratio(found["tokens", False], "pth an image"),
        "tokens_warm_vs_memmap_seq": found["sequential", False]["memmap .npy"]
        / found["tokens", False]["store"],
        "size_vs_f32": sizes["store"] / (sizes["pth an image"]),
    }
    ratios["extract_vs_backbone"] = overhead(options.photos)
    print(json.dumps({name: round(value, 4) for name, value in ratios.items()}))


def _ratio(seconds: dict[str, float], other: str) -> float:
    return seconds[other] / seconds["store"]


if __name__ == "__main__":
    main()

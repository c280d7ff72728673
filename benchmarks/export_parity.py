"""Whether an exported detector says what `predict` says, over real images.

    spg-pipe export DETECTOR OUT --openvino --no-calibration
    SPG_REAL_DATA=DIR python -m benchmarks.export_parity DETECTOR OUT LINES [--part 0/4] [--every N]
    python -m benchmarks.export_parity DETECTOR OUT LINES... --sum

The first judges every image below DIR (not the masks), and one image of each set at many sizes, by
`predict`'s path, ONNX Runtime and OpenVINO; it appends a line of JSON an image to LINES and goes on
where it stopped. `--part` takes a share of them, for another machine or time. The second sums up:
the greatest differences, how many images the runner reads otherwise, and how many decisions are
not PyTorch's by conformal thresholds at several rates, calibrated on half of each set's normal
images, by whose scores in PyTorch all are decided.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spg_pipe.decision.thresholds import conformal_threshold
from spg_pipe.deploy import formats
from spg_pipe.deploy.check import MOST, predicted
from spg_pipe.deploy.formats import Judge
from spg_pipe.deploy.runner import pixels_of
from spg_pipe.detector.model import Detector
from spg_pipe.images.files import is_image
from spg_pipe.images.reading import read_image
from spg_pipe.predict.predictor import load_predictor

SIZES = [(64, 64), (64, 640), (640, 64), (1, 200), (200, 1), (1, 1), (90, 70), (999, 1001)]
SIZES += [(1024, 1024), (1500, 500), (3000, 4000), (4000, 3000)]
RATES = (0.02, 0.05, 0.1, 0.2, 0.5)


def main() -> None:
    """Measure, or sum up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("export", type=Path)
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--part", default="0/1", help="N/OF: the share of the images")
    parser.add_argument("--every", type=int, default=1, help="only each Nth image")
    parser.add_argument("--sum", action="store_true", help="sum up what was measured")
    asked = parser.parse_args()
    if asked.sum:
        _sum([json.loads(line) for file in asked.lines for line in file.open()])
    else:
        _measure(asked)


def _images(root: Path) -> list[Path]:
    found = (
        path for path in root.rglob("*") if is_image(path) and "ground_truth" not in path.parts
    )
    return sorted(found)


def _measure(asked: argparse.Namespace) -> None:
    root, out = Path(os.environ["SPG_REAL_DATA"]), asked.lines[0]
    known = {json.loads(line)["image"] for line in out.open()} if out.exists() else set()
    detector = Detector.load(asked.detector)
    predictor = load_predictor(detector, (), None, "cpu", print, exact=True)
    exif = detector.record.protocol.exif_of_own_images
    runtimes: dict[str, Judge] = {"onnx": formats.read_onnx(asked.export / formats.ONNX)}
    if (asked.export / formats.OPENVINO).exists():
        runtimes["openvino"] = formats.read_openvino(asked.export / formats.OPENVINO)
    part, of = map(int, asked.part.split("/"))
    paths = _images(root)
    firsts = {path.relative_to(root).parts[0]: path for path in reversed(paths)}
    with out.open("a") as stream:
        for number, path in enumerate(paths):
            skipped = number % asked.every and path not in firsts.values()
            if number % of != part or skipped:
                continue
            pixels = read_image(path, exif=exif)
            for name, image in _shown(path, root, pixels, sized=path in firsts.values()):
                if name in known:
                    continue
                line = _line(lambda image=image: predicted(predictor, image), runtimes, image)
                read = _read_alike(path, pixels, exif)
                print(json.dumps({"image": name, "read": read, **line}), file=stream, flush=True)


def _shown(
    path: Path, root: Path, pixels: np.ndarray, *, sized: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """An image, of 8 bits, and perhaps the same at other sizes."""
    name = path.relative_to(root).as_posix()
    if pixels.dtype == np.uint16:
        pixels = np.round(pixels / 257).astype(np.uint8)  # as `preprocess` does
    yield name, pixels
    for height, width in SIZES if sized else []:
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        yield f"{name}@{width}x{height}", np.array(resized)


def _read_alike(path: Path, pixels: np.ndarray, exif: bool) -> bool | None:
    """Whether the runner sees the same pixels; None: it refuses the file."""
    try:
        return bool(np.array_equal(pixels_of(path, turned=exif), pixels))
    except ValueError:
        return None


def _line(ours: Any, runtimes: dict[str, Judge], image: np.ndarray) -> dict[str, Any]:
    start = time.perf_counter()
    anomaly_map, score = ours()
    line: dict[str, Any] = {"score": score, "seconds": time.perf_counter() - start}
    for name, judge in runtimes.items():
        start = time.perf_counter()
        found = judge(image)
        seconds = time.perf_counter() - start
        line[name] = {
            "score": float(found[1][0]),
            "map": float(np.abs(found[0] - anomaly_map).max()),
            "seconds": seconds,
        }
    return line


def _sum(lines: list[dict[str, Any]]) -> None:
    whole = [line for line in lines if "@" not in line["image"]]
    read = [line["read"] for line in whole]
    print(f"{len(whole):,} images, {len(lines) - len(whole)} at other sizes")
    print(f"the runner reads {read.count(True):,} alike, {read.count(False)} otherwise, "
          f"and refuses {read.count(None)}")  # fmt: skip
    print(f"PyTorch: {_seconds([line['seconds'] for line in whole])}")
    thresholds, calibrating = _thresholds(whole)
    for name in [each for each in ("onnx", "openvino") if each in lines[0]]:
        maps = [line[name]["map"] for line in lines]
        scores = [abs(line[name]["score"] - line["score"]) for line in lines]
        worst = lines[int(np.argmax(scores))]["image"]
        beyond = sum(max(both) > MOST for both in zip(maps, scores, strict=True))
        print(
            f"{name}: maps within {np.max(maps):.2e}, scores within {np.max(scores):.2e} "
            f"({worst}); {beyond} above {MOST:g}; "
            f"{_seconds([line[name]['seconds'] for line in whole])}"
        )
        for rate in RATES:
            flipped, decided, own = 0, 0, 0
            for line in lines:
                limit = thresholds.get((_set(line), rate))
                if limit is not None:
                    other = (line[name]["score"] > limit) != (line["score"] > limit)
                    flipped, decided = flipped + other, decided + 1
                    own += line["image"] in calibrating
            print(
                f"  at {rate:g}: {flipped} of {decided:,} decisions flipped ({own} calibrated on)"
            )


def _thresholds(whole: list[dict[str, Any]]) -> tuple[dict[tuple[str, float], float], set[str]]:
    """(Set, rate) → threshold, of a random half of its normal images; and the names of these."""
    normal = defaultdict[str, list[dict[str, Any]]](list)
    for line in whole:
        if "/good/" in line["image"]:
            normal[_set(line)].append(line)
    thresholds, calibrating = {}, set[str]()
    for name, images in normal.items():
        half = np.random.default_rng(0).permutation(len(images))[: len(images) // 2]
        scores = np.array([images[number]["score"] for number in half])
        calibrating |= {images[number]["image"] for number in half}
        for rate in RATES:
            if (len(scores) + 1) * rate >= 1:
                thresholds[name, rate] = conformal_threshold(scores, rate)
    return thresholds, calibrating


def _set(line: dict[str, Any]) -> str:
    return str(line["image"].partition("/")[0])


def _seconds(each: list[float]) -> str:
    return f"{np.median(each):.3f} s an image (median)"


if __name__ == "__main__":
    main()

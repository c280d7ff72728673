"""Does a run that is killed at random end as an unbroken one?

    python -m benchmarks.killed_runs DETECTOR [IMAGES] [KILLS]

Makes IMAGES (2,000) photographs of 64² pixels, one of them a bad file, and has `spg-pipe predict`
judge them, once unbroken and once killed KILLS (10) times by SIGKILL at random moments after the
first line. Prints how far each run came, and whether all files are the same, byte for byte.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LONGEST = 900
"""Seconds of any run."""


def make_photographs(folder: Path, images: int) -> None:
    """Squares of noise on a gradient, and a bad file in the middle."""
    chance = np.random.default_rng(0)
    gradient = np.linspace(60, 180, 64)[:, None, None]
    for number in range(images):
        path = folder / f"line{number % 4}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = gradient + chance.normal(0, 12, (64, 64, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    path = folder / f"line{images // 2 % 4}" / f"{images // 2:06d}.png"
    path.write_bytes(path.read_bytes()[:200])


def started(detector: str, photographs: Path, out: Path) -> subprocess.Popen[bytes]:
    """A run in a process of its own."""
    command = [sys.executable, "-c", "from spg_pipe.cli.main import main; main()", "predict"]
    command += [detector, str(photographs), "--out", str(out), "--device", "cpu"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def lines_in(out: Path) -> int:
    """How many lines a run has written."""
    path = out / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(detector: str, photographs: Path, out: Path, seconds: float) -> int:
    """Lines of a run that is killed so many seconds after its first line."""
    before, end = (
        (out / "run.json").stat().st_mtime_ns if out.exists() else 0,
        time.time() + LONGEST,
    )
    with started(detector, photographs, out) as process:
        while process.poll() is None and time.time() < end:
            if (out / "run.json").exists() and (out / "run.json").stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
    return lines_in(out)


def files(folder: Path) -> dict[str, bytes]:
    """All files with their bytes."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def main() -> int:
    """The check; 0 if all is the same."""
    detector, images, kills = [*sys.argv[1:], *["2000", "10"][len(sys.argv) - 2 :]]
    chance = np.random.default_rng()
    with tempfile.TemporaryDirectory() as temporary:
        photographs, unbroken, broken = (Path(temporary, n) for n in ("photos", "whole", "killed"))
        make_photographs(photographs, int(images))
        start = time.perf_counter()
        code = started(detector, photographs, unbroken).wait(LONGEST)
        seconds = time.perf_counter() - start
        print(
            f"unbroken: exit code {code}, {seconds:.1f} s, {lines_in(unbroken)} lines", flush=True
        )
        for number in range(int(kills)):
            after = chance.uniform(0, 1.6 * seconds / int(kills))
            lines = killed(detector, photographs, broken, after)
            print(f"kill {number + 1} after {after:.2f} s: {lines} lines", flush=True)
        start = time.perf_counter()
        code = started(detector, photographs, broken).wait(LONGEST)
        print(f"last: exit code {code}, {time.perf_counter() - start:.1f} s", flush=True)
        whole, ended = files(unbroken), files(broken)
        differing = sorted(n for n in whole | ended if whole.get(n) != ended.get(n))
        print(f"{len(whole)} files, {len(differing)} of them differ {differing[:5]}")
        bad = whole["predictions.jsonl"].count(b'"error"')
        print(f"bad files: {bad}; tables alike: {whole['scores.csv'] == ended['scores.csv']}")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())

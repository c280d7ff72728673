"""What a command says of each artefact that it reads when the artefact is damaged.

    python tests/damage_table.py [NUMBER]

Makes a miniature project, and damages each artefact NUMBER (60) times by turns: a bit is flipped,
the file is cut off, two of its parts change places. After each the command that reads it runs, and
its result is held against that of the whole artefact. Prints a table; exits with 1 if a result was
another without a word, or a command ended in a traceback.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import yaml
from e2e.helpers import ROOT, here, must, spg
from e2e.test_cli import SMALL
from layouts import write_mvtec, write_visa

from spg_pipe.detector import mask_regions

PART = 16
"""Bytes that change places, at most."""
KINDS = ("flipped", "cut off", "swapped")


class Row(NamedTuple):
    """Files that a command reads."""

    name: str
    pattern: str
    """Of their paths below artifacts/."""
    command: tuple[str, ...]
    result: str
    """Pattern of what the command makes, which is removed before it runs."""


STORE, LEFT = "features/left-*.zarr", ("--split", "left")
SCORE = ("score", *LEFT)
EVALUATE = ("evaluate", *LEFT)
SCORES, METRICS = "scores/mini/right--left-*", "metrics/mini/**/right--left-*"
DETECTOR = "artifacts/detectors/mini/right-efficientnet-lite0-64-s111"
GOOD, LIMITS = "left/bottle/test/good", "limits.json"
PREDICT = ("predict", DETECTOR, GOOD, "--out", "artifacts/predicted")
TRAIN = ("train-guides", "--aux", "left")
ROWS = [
    Row("store: tokens", f"{STORE}/tokens_*/c/**/*", SCORE, SCORES),
    Row("store: prefix tokens", f"{STORE}/prefix_*/c/**/*", SCORE, SCORES),
    Row("store: masks", f"{STORE}/mask/c/**/*", EVALUATE, METRICS),
    Row("store: small arrays", f"{STORE}/*/c/0", SCORE, SCORES),
    Row("store: zarr.json", f"{STORE}/zarr.json", SCORE, SCORES),
    Row("store: zarr.json of arrays", f"{STORE}/*/zarr.json", SCORE, SCORES),
    Row("store: shards.json", f"{STORE}/shards.json", SCORE, SCORES),
    Row("SAE: config, tensors", "sae/mini/left-*/[cs]*[!v]", TRAIN, "detectors/mini/left-*"),
    Row("SAE: quality, curve", "sae/mini/right-*/[qc]u*", ("report",), "report/mini"),
    Row("detector: config, tensors", "detectors/mini/right-*/*[!v]", SCORE, SCORES),
    Row("detector: config", "detectors/mini/right-*/config.json", SCORE, SCORES),
    Row("scores: all files", f"{SCORES}/**/*", EVALUATE, METRICS),
    Row("scores: config", f"{SCORES}/config.json", EVALUATE, METRICS),
    Row("metrics: JSON", "metrics/mini/right--left-*.json", ("report",), "report/mini"),
    Row("metrics: curves of categories", "metrics/mini/curves/*-categories.csv",
        ("report",), "report/mini"),
    Row("manifest", "manifests/left-test.parquet", ("stage", "--dataset", "left"), STORE),
    Row("calibration", LIMITS, (*PREDICT, "--calibration", f"artifacts/{LIMITS}"), "predicted"),
    Row("bank", "bank/*", (*PREDICT, "--normals", "artifacts/bank"), "predicted"),
]  # fmt: skip


def project(folder: Path) -> Path:
    """A folder in which every stage has run."""
    write_mvtec(folder / "left")
    write_visa(folder / "right", seed=1)
    (folder / "params.yaml").write_text(yaml.safe_dump(SMALL))
    for stage in ("prepare", "extract", "train-sae", "train-guides", "score", "evaluate"):
        must(spg(stage, "--quiet", cwd=folder))
    bank = ("fit", DETECTOR, "--normals", GOOD, "--out", "artifacts/bank")
    limits = ("calibrate", DETECTOR, GOOD, "--false-alarms", "0.4", "--out", f"artifacts/{LIMITS}")
    for command in (bank, limits):
        must(spg(*command, "--quiet", cwd=folder))
    return folder


def call(root: Path, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run a command, or the stage `extract`, the only one that reads manifests."""
    if command[0] != "stage":
        return spg(*command, "--quiet", cwd=root)
    script = str(ROOT / "stages" / "extract.py")
    start = partial(runpy.run_path, script, run_name="__main__")
    return here(start, [script, *command[1:]], root)


def content_of(path: Path) -> dict[str, bytes]:
    """Of a file or of all files of a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def matching(root: Path, pattern: str) -> list[Path]:
    """Files and folders, in order."""
    return sorted((root / "artifacts").glob(pattern))


def damaged(content: bytes, kind: str, random: np.random.Generator) -> bytes:
    """Other bytes; always different ones."""
    while True:
        at = int(random.integers(len(content)))
        if kind == "flipped":
            changed = bytearray(content)
            changed[at] ^= 1 << int(random.integers(8))
        elif kind == "cut off":
            changed = bytearray(content[:at])
        else:
            other = int(random.integers(len(content)))
            size = min(PART, len(content) - max(at, other))
            changed = bytearray(content)
            changed[at : at + size] = content[other : other + size]
            changed[other : other + size] = content[at : at + size]
        if changed != content:
            return bytes(changed)


def outcome(root: Path, row: Row, whole: dict[str, bytes] | None) -> tuple[str, str]:
    """What became of the command, and its message or the names of what differs."""
    for result in matching(root, row.result):
        _ = shutil.rmtree(result) if result.is_dir() else result.unlink()
    try:
        # As in a process of its own, which has not seen the masks yet.
        with mock.patch.object(mask_regions, "_CACHE", mask_regions.RegionCache()):
            done = call(root, row.command)
    except BaseException:
        return "traceback", traceback.format_exc()
    if "Traceback" in done.stdout + done.stderr:
        return "traceback", done.stderr
    if done.returncode:
        return "clear error", done.stderr
    made = results(root, row)
    if whole is None or made == whole:
        return "same result", ""
    names = {name for name in {*made, *whole} if made.get(name) != whole.get(name)}
    return "SILENT", ", ".join(sorted(names))


def results(root: Path, row: Row) -> dict[str, bytes]:
    """What the command made, by path."""
    return {
        f"{path.name}/{name}": content
        for path in matching(root, row.result)
        for name, content in content_of(path).items()
    }


def table_row(root: Path, row: Row, number: int, say: Callable[[str], None]) -> Counter[str]:
    """How often each outcome was met."""
    random, counts = np.random.default_rng(0), Counter[str]()
    kind, words = outcome(root, row, None)
    assert kind == "same result", words
    whole = results(root, row)
    files = [path for path in matching(root, row.pattern) if path.is_file()]
    for turn in range(number):
        path = files[int(random.integers(len(files)))]
        content = path.read_bytes()
        changed = damaged(content, KINDS[turn % len(KINDS)], random)
        path.write_bytes(changed)
        kind, words = outcome(root, row, whole)
        counts[kind] += 1
        if kind in ("traceback", "SILENT"):
            say(f"{path.relative_to(root)} {KINDS[turn % len(KINDS)]}: {kind}: {words[-2000:]}")
        path.write_bytes(content)
    outcome(root, row, None)
    return counts


def main(argv: list[str]) -> int:
    number, bad = int(argv[1]) if len(argv) > 1 else 60, 0
    names = ("clear error", "same result", "traceback", "SILENT")
    with tempfile.TemporaryDirectory() as place:
        root = project(Path(place) / "project")
        must(spg("report", "--quiet", cwd=root))
        print(f"{'artefact':<30} {'command':<14}" + "".join(f"{name:>13}" for name in names))
        for row in ROWS:
            if not matching(root, row.pattern):
                print(f"{row.name:<30} is not there")
                bad += 1
                continue
            counts = table_row(root, row, number, lambda words: print(words, file=sys.stderr))
            cells = "".join(f"{counts[name]:>13}" for name in names)
            print(f"{row.name:<30} {row.command[0]:<14}{cells}", flush=True)
            bad += counts["traceback"] + counts["SILENT"]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""SIGKILL at random moments over all stages, each followed by `dvc repro`: the long version.

    python tests/faults/kills.py --kills 50

A small recipe of the built-in demo runs once undisturbed. Then, for each kill, DVC runs a stage
again (`dvc repro --force --single-item`) and it is killed, at a random one of all things that it
does to files below artifacts/, or a random time after the first: the stage alone, DVC with it, or
DVC alone, whose stage goes on. `dvc repro` must then end well by itself, and every artefact must
hold the same bytes. A line is printed for each; the exit code is 1 if one differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

TESTS = Path(__file__).resolve().parents[1]
HOW = ("stage", "stage and DVC", "DVC alone")
HOOK = """
import atexit, os, signal, sys, threading, time

STAGE, COUNTS = os.environ.get("DVC_STAGE"), os.environ.get("SPG_COUNTS")
TOP = os.path.join(os.getcwd(), "artifacts") + os.sep
DEEDS, WRITES = [0], os.O_WRONLY | os.O_RDWR | os.O_CREAT
AT, HOW = int(os.environ.get("SPG_KILL_AT", -1)), os.environ.get("SPG_KILL_HOW", "")
AFTER = float(os.environ.get("SPG_KILL_AFTER", 0))

def kill():
    time.sleep(AFTER)
    group, parent = os.getpgid(0), os.getppid()
    with open(COUNTS, "a") as file:
        file.write("killed\\n")
    if HOW == "stage":
        os.kill(os.getpid(), signal.SIGKILL)
    elif HOW == "DVC alone":
        os.kill(int(os.environ["SPG_DVC"]) if "SPG_DVC" in os.environ else parent, signal.SIGKILL)
    else:
        os.killpg(group, signal.SIGKILL)

def hook(event, args):
    if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & WRITES):
        return
    if not isinstance(args[0], (str, os.PathLike)):
        return
    if not os.path.abspath(os.fspath(args[0])).startswith(TOP):
        return
    if DEEDS[0] == AT:
        DEEDS[0] += 1
        threading.Thread(target=kill, daemon=True).start() if AFTER else kill()
    DEEDS[0] += 1

def tell():
    with open(COUNTS, "a") as file:
        file.write(f"{STAGE} {DEEDS[0]}\\n")

if STAGE and COUNTS:
    sys.addaudithook(hook)
    atexit.register(tell)
"""
"""sitecustomize.py of the stages: counts deeds, and kills."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--stages", nargs="+", help="only these, by their names in dvc.yaml")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no kill after so many")
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    from e2e.helpers import pipeline_folder

    with tempfile.TemporaryDirectory() as base:
        folder, hook = pipeline_folder(Path(base, "run")), Path(base, "hook")
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK)
        (folder / "params.yaml").write_text(yaml.safe_dump(small_recipe()))
        start, told = time.monotonic(), hook / "told"
        ended = dvc(folder, hook, {"SPG_COUNTS": told})
        assert ended.returncode == 0, ended.stdout
        print(f"undisturbed: {time.monotonic() - start:.0f} s; seed {options.seed}", flush=True)
        lines = [line.split() for line in told.read_text().splitlines()]
        counts = {stage: int(deeds) for stage, deeds in lines}
        if options.stages:
            counts = {n: deeds for n, deeds in counts.items() if n.split("@")[0] in options.stages}
        return kill_often(folder, hook, options, counts)


def small_recipe() -> dict[str, object]:
    """recipes/demo.yaml with one direction, small images and a small dictionary."""
    recipe = yaml.safe_load((TESTS.parent / "recipes" / "demo.yaml").read_text())
    small = {"auxiliaries": ["demo-mvtec"], "directions": recipe["directions"][:1]}
    recipe |= small | {"sae": {"dict_size": 64, "k": 4, "tokens": 20_000, "batch_tokens": 64}}
    recipe["backbone"] |= {"image_size": 64, "layers": ["s8", "s16"]}
    recipe.pop("choose")
    return recipe


def kill_often(
    folder: Path, hook: Path, options: argparse.Namespace, counts: dict[str, int]
) -> int:
    """`counts`: stage → how often it does something to a file below artifacts/."""
    chance = random.Random(options.seed)  # noqa: S311
    expected, start = digests(folder), time.monotonic()
    stages = list(counts)
    print("| stage | deed | then | killed | repro, s | equal |\n|---|---|---|---|---|---|")
    totals, wrong = Counter[str](), 0
    for number in range(options.kills):
        if time.monotonic() - start > 60 * options.minutes:
            break
        stage = stages[number % len(stages)]
        at, how = chance.randrange(max(1, counts[stage])), chance.choice(HOW)
        after = chance.choice([0.0, chance.uniform(0.001, 0.05)])
        told = hook / "told"
        told.unlink(missing_ok=True)
        extra = {"SPG_KILL_AT": at, "SPG_KILL_HOW": how, "SPG_KILL_AFTER": after}
        remove_outputs(folder, stage)  # of some stages DVC leaves them, and then little is done
        dvc(folder, hook, extra | {"SPG_COUNTS": told}, "--force", "--single-item", stage)
        killed = "killed" in (told.read_text() if told.exists() else "")
        shutil.rmtree(folder / ".dvc" / "cache" / "runs", ignore_errors=True)
        began = time.monotonic()
        ended = dvc(folder, hook, {})
        equal = ended.returncode == 0 and digests(folder) == expected
        left = list((folder / "artifacts").rglob("*.tmp"))
        wrong += not equal or bool(left)
        totals["killed" if killed else "ended first"] += 1
        what = how if killed else "ended first"
        seconds = time.monotonic() - began
        same = "yes" if equal and not left else f"NO {left}"
        row = f"| {stage} | {at + 1} of {counts[stage]} | {after:.3f} s | {what} | {seconds:.0f} |"
        print(f"{row} {same} |", flush=True)
        if not equal:
            print(ended.stdout[-3000:], flush=True)
    print(f"{dict(totals)}, {wrong} wrong", flush=True)
    return int(wrong > 0)


def remove_outputs(folder: Path, stage: str) -> None:
    """Also from DVC's cache, from which DVC would take them instead of running the stage."""
    for made in yaml.safe_load((folder / "dvc.lock").read_text())["stages"][stage]["outs"]:
        path, digest = folder / made["path"], made["md5"]
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        cached = folder / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
        cached.unlink(missing_ok=True)


def dvc(
    folder: Path, hook: Path, extra: dict[str, object], *words: str
) -> subprocess.CompletedProcess[str]:
    """`dvc repro` in a group of its own, until it and its stage have ended or been killed."""
    from e2e.helpers import environment

    paths = os.pathsep.join([str(hook), str(TESTS.parent)])
    values = {name: str(value) for name, value in extra.items()}
    return subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *words],
        cwd=folder,
        # The last bits of scores depend on the number of threads.
        env=environment() | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | values,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        start_new_session=True,
    )


def digests(folder: Path) -> dict[str, str]:
    """Of every artefact's files but hidden ones."""
    top = folder / "artifacts"
    return {
        path.relative_to(top).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(top.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


if __name__ == "__main__":
    sys.exit(main())

"""Workers killed at random moments, of a cluster and of arrays of plain processes: is every store,
are all scores and metrics the same to the byte as those of one process?

    python -m benchmarks.kill_workers --times 20 [--way cluster|array]

Random pictures go through extract, score and evaluate once, in one process. Then again and again:
`--cluster local:2` with a worker killed by SIGKILL at random moments, or two plain processes
`extract --shards`, each killed and given again until it ends, and `finish`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.kill_extract import ROOT, SIDE, digests, write_pictures

IMAGES = 100
RECIPE = {
    "name": "kills",
    "datasets": [{"name": n, "layout": "folder", "root": n} for n in ("few", "many")],
    "auxiliaries": ["few"],
    "directions": [{"aux": "few", "target": "many"}],
    "seeds": [1],
    "backbone": {"alias": "efficientnet-lite0", "image_size": SIDE, "layers": ["s8", "s16"]},
    "sae": {"dict_size": 32, "k": 4, "tokens": 9600, "batch_tokens": 64},
}
Made = dict[str, dict[str, str]]
"""Kind of artefact → path → SHA-256."""


def command(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """`spg-pipe …` in a folder, started."""
    code = "from spg_pipe.cli.main import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words, "--quiet"], cwd=folder, env=environment
    )


def must(folder: Path, *words: str) -> None:
    """A command that has to succeed."""
    if command(folder, *words).wait():
        raise SystemExit(f"spg-pipe {' '.join(words)} failed")


def made(folder: Path) -> Made:
    """What the target's stages made; not the empty files of locks."""
    kinds = ("features", "scores", "metrics")
    every = {kind: digests(folder / "artifacts" / kind) for kind in kinds}
    return {
        kind: {name: sha for name, sha in files.items() if not name.startswith(".")}
        for kind, files in every.items()
    }


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The workers of a command's local cluster."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def cluster(folder: Path, generator: random.Random, kills: int, seconds: float) -> int:
    """Run the stages on two workers, of which some are killed; how many were.

    `seconds`: about so long a command takes on this machine, as busy as it is.
    """
    done = 0
    for words in (("extract", "--split", "many"), ("score",), ("evaluate",)):
        process = command(folder, *words, "--cluster", "local:2")
        while process.poll() is None:
            time.sleep(generator.uniform(0.1, 1) * seconds)
            workers = workers_of(process) if done < kills else []
            if workers:
                victim = generator.choice(workers)
                if process.poll() is None and victim.is_running():
                    victim.send_signal(signal.SIGKILL)
                    done += 1
        if process.returncode:
            raise SystemExit(f"spg-pipe {' '.join(words)} ended with {process.returncode}")
    return done


def array(folder: Path, generator: random.Random, kills: int, seconds: float) -> int:
    """Run the shards by two plain processes over all of them, killed and given again."""
    words, done = ("extract", "--split", "many", "--shards", "0:5"), 0
    running = [command(folder, *words) for _ in range(2)]
    while running:
        time.sleep(generator.uniform(0.1, 1) * seconds)
        for process in list(running):
            if process.poll() is None and done < kills and generator.random() < 0.5:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
            if process.poll() is not None:
                running.remove(process)
                if process.returncode == -signal.SIGKILL:
                    running.append(command(folder, *words))
                elif process.returncode:
                    raise SystemExit(f"extract --shards ended with {process.returncode}")
    (store,) = (folder / "artifacts" / "features").glob("many-*.zarr")
    must(folder, "finish", str(store))
    for stage in ("score", "evaluate"):
        must(folder, stage)
    return done


def again(whole: Path, folder: Path) -> None:
    """A folder with what the target's stages start from."""
    for name in ("few", "many"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(whole / name)
    shutil.copy(whole / "params.yaml", folder)
    (few,) = (whole / "artifacts" / "features").glob("few-*.zarr")
    for kind in ("manifests", "sae", "detectors", f"features/{few.name}"):
        shutil.copytree(whole / "artifacts" / kind, folder / "artifacts" / kind)


def run(times: int, seed: int, ways: list[str], place: Path) -> int:
    """Print a line a run; the number of runs whose artefacts differ."""
    generator = random.Random(seed)  # noqa: S311 - moments, not secrets
    whole = place / "whole"
    write_pictures(whole / "few", 12)
    write_pictures(whole / "many", IMAGES)
    (whole / "params.yaml").write_text(json.dumps(RECIPE))
    seconds = 0.0
    for stage in ("prepare", "extract", "train-sae", "train-guides", "score", "evaluate"):
        begun = time.monotonic()
        must(whole, stage)
        seconds = max(seconds, time.monotonic() - begun)
    expected, wrong, kills, number = made(whole), 0, 0, 0
    while kills < times:
        way = {"cluster": cluster, "array": array}[ways[number % len(ways)]]
        folder = place / f"{number}"
        again(whole, folder)
        begun = time.monotonic()
        count = way(folder, generator, min(10, times - kills), seconds)
        found = made(folder)
        differ = [kind for kind in expected if found[kind] != expected[kind]]
        kills, wrong, number = kills + count, wrong + bool(differ), number + 1
        print(
            f"{number:2d}: {way.__name__:7}, {count} killed in {time.monotonic() - begun:3.0f} s: "
            f"{'DIFFERENT ' + ', '.join(differ) if differ else 'identical'}",
            flush=True,
        )
        shutil.rmtree(folder)
    print(f"{kills} kills in {number} runs; {wrong} runs differ from that of one process")
    return wrong


def main() -> None:
    """Exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=("cluster", "array"), help="One of them alone.")
    options = parser.parse_args()
    ways = [options.way] if options.way else ["cluster", "array"]
    with tempfile.TemporaryDirectory() as folder:
        raise SystemExit(min(run(options.times, options.seed, ways, Path(folder)), 1))


if __name__ == "__main__":
    main()

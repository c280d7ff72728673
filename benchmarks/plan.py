"""What `plan` predicts, and what happens: disk, private memory, processor time of each stage.

    python -m benchmarks.plan --params params.yaml --aux demo-mvtec --target demo-visa [--side 256]

One probe, then each command of the recipe in a process of its own, in the recipe's working
directory. Its memory is looked at every 20 ms. The last line is one JSON object: happened over
predicted, of each stage.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.timing import machine
from spg_pipe.cli.options import Options
from spg_pipe.pipeline.plan import STAGES, StagePlan, plan
from spg_pipe.pipeline.probe import Probe
from spg_pipe.recipe.params import Params
from spg_pipe.store.reader import FeatureStore

COMMAND = "from spg_pipe.cli.main import main; main()"


def happened(words: list[str]) -> tuple[float, int]:
    """CPU seconds and peak private bytes of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *words, "--quiet"])
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            held = watched.memory_info()
            peak = max(peak, held.rss - held.shared)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"spg-pipe {' '.join(words)} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak


def words_of(stage: str, aux: str, target: str) -> list[str]:
    """A stage's command for one auxiliary set or one target."""
    if stage == "extract":
        return [stage, "--split", target]
    if stage in ("train-sae", "train-guides"):
        return [stage, "--aux", aux]
    return [stage, *(["--split", target] if stage != "report" else [])]


def size(paths: list[Path]) -> int:
    """Bytes of files, and of the files of folders."""
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    """Print a table, and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--aux", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--categories", type=int, default=1, help="of the target")
    options = parser.parse_args()
    run = Options(params=options.params, quiet=True).run()
    print(machine(), f"load {os.getloadavg()[0]:.1f}", flush=True)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        rates, setting = Probe(run, options.side, Path(folder)).rates()
    print(f"the probe took {time.process_time() - began:.0f} s of CPU", flush=True)
    params: Params = run.params
    base = ["--params", str(options.params)]
    happened(["prepare", *base])
    happened(["extract", "--split", options.aux, *base])
    seed, paths, found = params.seeds[0], run.paths, {}
    metrics = paths.metrics(options.aux, options.target, seed)
    files = {
        "extract": [paths.store(options.target)],
        "train-sae": [paths.sae(options.aux, seed)],
        "train-guides": [paths.detector(options.aux, seed)],
        "score": [paths.scores(options.aux, options.target, seed)],
        "report": [paths.report],
    }
    for stage in STAGES:
        took = happened([*words_of(stage, options.aux, options.target), *base])
        held = files.get(stage) or list(metrics.parent.rglob(f"{metrics.stem}*"))
        found[stage] = (*took, size([f for f in held if f.exists()]))
        print(stage, found[stage], flush=True)
    images = {name: len(FeatureStore(paths.store(name))) for name in (options.aux, options.target)}
    ratios = {}
    print("stage | images | CPU s | memory MB | disk MB: predicted, happened")
    for stage in STAGES:
        count = images[options.aux if stage.startswith("train") else options.target]
        plans = plan(rates, setting, count, categories=options.categories)
        each: StagePlan = next(p for p in plans if p.stage == stage)
        cpu, memory, disk = found[stage]
        print(
            f"{stage} | {count} | {each.seconds:.1f}, {cpu:.1f} | "
            f"{each.memory_bytes / 1e6:.0f}, {memory / 1e6:.0f} | "
            f"{each.disk_bytes / 1e6:.3g}, {disk / 1e6:.3g}"
        )
        ratios[stage] = [
            round(cpu / each.seconds, 2),
            round(memory / each.memory_bytes, 2),
            round(disk / each.disk_bytes, 2),
        ]
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()

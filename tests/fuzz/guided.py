"""Coverage-guided fuzzing of one reader: `python tests/fuzz/guided.py READER --runs 50000`.

atheris (the extra `fuzz`) instruments spg_pipe alone, and keeps what reaches new code. Allowed is
an SpgError, or a value as the reader promises. Everything else is a finding, and is kept with its
traceback: another exception, more than ten seconds, a file outside of the folder, another process,
a host. A finding that crashes the interpreter is libFuzzer's `crash-…`. `--replay FILE` reads one
file. `python tests/fuzz/guided.py --list` names the readers.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
SECONDS = 10
_DONE = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", nargs="?")
    parser.add_argument("--runs", type=int, default=50_000)
    parser.add_argument(
        "--seconds", type=int, default=0, help="at most; 0: until all runs are done"
    )
    parser.add_argument("--findings", type=Path, default=Path("build/findings"))
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    if options.list:
        from fuzz.readers import READERS

        print(*READERS, sep="\n")
        return 0
    if options.child or options.replay:
        return fuzz(options)
    findings = (options.findings / options.reader).absolute()
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, *sys.argv[1:], "--child", folder]
        words += ["--findings", str(findings)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            last = ("0", "0", "0")
            for line in process.stderr:
                if told := _DONE.search(line):
                    last = told.groups()
                elif not line.startswith(("INFO:", "#", "Done")):
                    print(line, end="", file=sys.stderr)
    kept = sorted(path.name for path in findings.iterdir())
    runs, edges, features = last
    print(
        f"{options.reader}: {int(runs):,} runs, {edges} edges, {features} features, "
        f"{len(kept)} findings {kept}, exit code {process.returncode}",
        flush=True,
    )
    return int(bool(kept) or process.returncode != 0)


def fuzz(options: argparse.Namespace) -> int:
    """In the process that libFuzzer ends: it calls `exit` when all runs are done."""
    import atheris

    warnings.simplefilter("ignore")
    folder = options.child or Path(tempfile.mkdtemp())
    with atheris.instrument_imports(include=["spg_pipe"]):
        from fuzz import harness
        from fuzz.readers import READERS, World
        from spg_pipe.errors import SpgError

        harness.SECONDS = SECONDS
        reader = READERS[options.reader](World(folder))
        for content in reader.corpus:  # also what is imported late is instrumented
            with contextlib.suppress(SpgError):
                reader.read(content)

    def once(content: bytes) -> None:
        try:
            with harness.nothing_outside(folder):
                reader.read(content)
        except SpgError:
            return
        except BaseException as error:
            if options.replay:
                raise
            keep(error, content, options.findings)

    if options.replay:
        once(options.replay.read_bytes())
        return 0
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(reader.corpus):
        (corpus / str(number)).write_bytes(content)
    longest = max(map(len, reader.corpus))
    arguments: list[Any] = [
        sys.argv[0],
        str(corpus),
        f"-runs={options.runs}",
        f"-max_total_time={options.seconds}",
        f"-max_len={2 * longest}",
        "-len_control=0",
        "-timeout=0",  # the harness has its own
        "-rss_limit_mb=8000",
        f"-artifact_prefix={options.findings}/",
        f"-dict={_dictionary(reader.corpus, folder)}",
        "-print_final_stats=0",
    ]
    atheris.Setup(arguments, once)
    atheris.Fuzz()
    return 0


def keep(error: BaseException, content: bytes, findings: Path) -> None:
    """The first input of each kind: an exception from one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/spg_pipe/" in frame.filename] or frames
    where = f"{type(error).__name__} {Path(ours[-1].filename).name} {ours[-1].lineno}"
    name = hashlib.sha256(where.encode()).hexdigest()[:8]
    if not (findings / name).exists():
        (findings / name).write_bytes(content)
        (findings / f"{name}.txt").write_text("".join(traceback.format_exception(error)))


def _dictionary(corpus: list[bytes], folder: Path) -> Path:
    """Words of the files, which the fuzzer puts into others."""
    words: set[bytes] = {
        b"../",
        b"/etc/passwd",
        b"-1",
        b"1e308",
        b"null",
        b"NaN",
        b"[[",
        b"\\ud800",
    }
    for content in corpus:
        words |= set(re.findall(rb"[A-Za-z_][\w.-]{2,30}", content[:20_000])[:400])
    path = folder / "words"
    path.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in sorted(words))
    )
    return path


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

"""Does a server hold out under twice the load that it can bear?

    python -m benchmarks.serve_load DETECTOR [SECONDS] [OPTIONS of serve]

Starts `spg-pipe serve`, measures how many photographs it judges a second, and then has processes on
loopback send twice as many for SECONDS (30), with some garbage between them. Prints how many
requests had which status, their latencies, and the server's private memory over time; ends with 1
if there was another status than 200, 422 (of the garbage), 429 and 503, or memory grew.
"""

import http.client
import io
import multiprocessing
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

PROCESSES, THREADS = 2, 16
"""Senders: processes, and threads of each; more than a queue holds, so that it overflows."""
CAPACITY_SECONDS = 8
GARBAGE = 20
"""One request in so many is no image."""
GROWTH = 1.1
"""Of private memory, from the first third of the load to the last."""
SIDES = (320, 640, 1024)


class Sent(NamedTuple):
    """A request that was answered."""

    status: int
    seconds: float


def photographs() -> list[bytes]:
    """JPEG files of several sizes, squares of noise on a gradient."""
    chance, files = np.random.default_rng(0), []
    for side in SIDES:
        gradient = np.linspace(60, 180, side)[:, None, None]
        pixels = (gradient + chance.normal(0, 12, (side, side, 3))).clip(0, 255)
        data = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(data, "JPEG", quality=90)
        files.append(data.getvalue())
    return files


FILES = photographs()


def send(port: int, end: float, period: float, number: int) -> list[Sent]:
    """Requests of one connection until `end`, one in `period` seconds; 0: as fast as it can."""
    sent, due = list[Sent](), time.time() + period * number / THREADS
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.time() < end:
        time.sleep(max(0.0, due - time.time()))
        due += period
        garbage = len(sent) % GARBAGE == GARBAGE - 1
        body = b"no image" if garbage else FILES[(len(sent) + number) % len(FILES)]
        began = time.perf_counter()
        try:
            connection.request("POST", "/predict", body)
            answer = connection.getresponse()
            answer.read()
            sent.append(Sent(answer.status, time.perf_counter() - began))
        except (OSError, http.client.HTTPException):
            connection.close()
            sent.append(Sent(0, time.perf_counter() - began))
    return sent


def senders(
    port: int, end: float, period: float, threads: int, into: "multiprocessing.Queue"
) -> None:  # type: ignore[type-arg]
    """A process with several connections."""
    found = list[Sent]()
    each = [
        threading.Thread(target=lambda n=n: found.extend(send(port, end, period, n)))
        for n in range(threads)
    ]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()
    into.put(found)


def load(
    port: int, seconds: float, rate: float, threads: int, server: psutil.Process
) -> tuple[list[Sent], list[float]]:
    """What `PROCESSES` were answered at a rate, requests a second, and private MB each second."""
    into = multiprocessing.Queue()  # type: ignore[var-annotated]
    end = time.time() + seconds
    period = PROCESSES * threads / rate if rate else 0.0
    each = [
        multiprocessing.Process(target=senders, args=(port, end, period, threads, into))
        for _ in range(PROCESSES)
    ]
    for process in each:
        process.start()
    memory = []
    while time.time() < end:
        memory.append(server.memory_full_info().uss / 1e6)
        time.sleep(min(1.0, max(0.0, end - time.time())))
    sent = [one for _ in each for one in into.get(timeout=120)]
    for process in each:
        process.join()
    return sent, memory


def latencies(sent: Sequence[Sent], status: int) -> str:
    """Percentiles of those with a status, milliseconds."""
    times = [1000 * one.seconds for one in sent if one.status == status]
    if not times:
        return "none"
    p50, p95, p99, most = np.percentile(times, [50, 95, 99, 100])
    return f"p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, longest {most:.0f} ms"


def main(detector: str, seconds: float, options: Sequence[str]) -> int:
    """Measure and print."""
    command = [sys.executable, "-c", "from spg_pipe.cli.main import main; main()", "serve"]
    command += [detector, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = ""
        while not (found := re.search(r"served at http://\S+:(\d+)/", said)):
            said += process.stderr.readline()
            if process.poll() is not None:
                raise SystemExit(said)
        port, server = int(found[1]), psutil.Process(process.pid)
        sent, _ = load(port, CAPACITY_SECONDS, 0, 2, server)
        capacity = sum(one.status == 200 for one in sent) / CAPACITY_SECONDS
        print(f"capacity: {capacity:.1f} images/s; {latencies(sent, 200)} with 4 connections")
        sent, memory = load(port, seconds, 2 * capacity, THREADS, server)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        complaints = process.stderr.read()
    counts = Counter(one.status for one in sent)
    print(f"load: {len(sent) / seconds:.1f} requests/s for {seconds:.0f} s")
    for status, count in sorted(counts.items()):
        print(f"  {status}: {count:6,} ({count / seconds:.1f}/s); {latencies(sent, status)}")
    third = max(1, len(memory) // 3)
    first, last = np.median(memory[:third]), np.median(memory[-third:])
    print(f"private memory: {memory[0]:.0f} MB at first; {first:.0f} MB in the first third,")
    print(f"  {last:.0f} MB in the last, at most {max(memory):.0f} MB")
    print(f"ended by SIGTERM with {code}; said {len(complaints)} characters of errors")
    well = set(counts) <= {200, 422, 429, 503} and last <= GROWTH * first and code == 0
    print("holds" if well else "DOES NOT HOLD")
    return int(not well)


if __name__ == "__main__":
    _, folder, *rest = sys.argv
    lasting = float(rest.pop(0)) if rest and rest[0].replace(".", "").isdecimal() else 30.0
    sys.exit(main(folder, lasting, rest))

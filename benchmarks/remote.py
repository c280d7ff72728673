"""A store on a real S3 server (SeaweedFS on loopback), with and without the cache of remote stores.

    pip install -e '.[bench,s3]'
    python -m benchmarks.remote [--images 192] [--rounds 3] [--folder DIR]

Speed: tokens in order, and an epoch of shuffled batches, beside a plain client (http.client, signed
requests: whole files over 4 connections, ranges over 8 in order, or image by image in random
order over 8) and beside the local store, each opened
before the clock starts; all in turn in one run. The best of the rounds, because machines are
shared: megabytes a second by wall time, and this process's CPU seconds.
Faults: the server is killed (-9) while tokens are read and started again on the same files; a
reader is killed while it fills the cache; each time the tokens that come later must be the local
store's. The last line is one JSON object with the ratios.
"""

import argparse
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.score_evaluate import DIM, GRID, LAYER, write_store
from benchmarks.timing import machine
from spg_pipe.errors import SpgError
from spg_pipe.store.cache import REQUEST_BYTES, VARIABLE
from spg_pipe.store.files import StoreFiles
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import token_batches

URL = "s3://benchmark/store.zarr"
SEQUENCE = 64
READER = "import sys; from benchmarks.remote import in_order, opened; in_order(opened(sys.argv[1]))"


class Server:
    """SeaweedFS in a folder, on free ports of the loopback, with a key of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, key, secret = folder, secrets.token_hex(8), secrets.token_hex(16)
        folder.mkdir(parents=True)
        identity = {"name": "benchmark", "actions": ["Admin", "Read", "List", "Write"]}
        identity["credentials"] = [{"accessKey": key, "secretKey": secret}]
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        names = ("master.port", "volume.port", "filer.port", "s3.port")
        self.ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self.address = f"http://127.0.0.1:{self.ports['s3.port']}"
        os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        os.environ |= {"AWS_ENDPOINT_URL": self.address, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ["AWS_ALLOW_HTTP"] = "true"  # obstore insists on TLS otherwise

    def start(self) -> None:
        """Start it, and wait until it answers."""
        (self.folder / "data").mkdir(exist_ok=True)
        options = [f"-{name}={port}" for name, port in self.ports.items()]
        options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=data", "-s3", "-s3.config=s3.json"]
        options += ["-master.volumeSizeLimitMB=1024", "-volume.max=40"]
        weed = Path(sys.executable).with_name("weed")
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [weed, "server", *options], cwd=self.folder, stdout=log, stderr=log
            )
        for _ in range(240):
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended: see {self.folder / 'log'}")
            try:
                connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=5)
                connection.request("GET", "/benchmark")
                if connection.getresponse().status in (200, 403, 404):
                    return
            except OSError:
                time.sleep(0.5)
        raise SystemExit("the server does not answer")

    def kill(self) -> None:
        """As the system ends a process without memory."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def upload(local: Path) -> None:
    """Copy a store into a bucket, which SeaweedFS makes."""
    from obstore.store import from_url

    bucket = URL.removesuffix("/store.zarr")
    for path in sorted(local.rglob("*")):
        if path.is_file():
            from_url(bucket).put(f"store.zarr/{path.relative_to(local)}", path)


def _free_ports(count: int) -> list[int]:
    """Ports whose numbers plus 10,000, where SeaweedFS puts gRPC, are valid, too."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as probe:
            port = secrets.randbelow(30_000) + 20_000
            if probe.connect_ex(("127.0.0.1", port)) and port not in ports:
                ports.append(port)
    return ports


def opened(place: str, *, plain: bool = False) -> FeatureStore:
    """A store, and what it reads before its first tokens."""
    store = FeatureStore(place, plain=plain)
    store.token_array(LAYER)
    return store


def in_order(store: FeatureStore) -> None:
    """Read all tokens in order, 64 images at a time."""
    out = np.empty((SEQUENCE, GRID[0] * GRID[1], DIM), np.float16)
    for first in range(0, len(store), SEQUENCE):
        rows = np.arange(first, min(first + SEQUENCE, len(store)))
        store.tokens(LAYER, rows, out[: len(rows)])


def shuffled(store: FeatureStore) -> None:
    """An epoch of shuffled batches of 8192 tokens, as SAE training takes them."""
    source = TokenSource(store, LAYER)
    for _ in token_batches(source, seed=1, epoch=0, batch_tokens=8192):
        pass


def plain_client(
    urls: list[tuple[str, int]], connections: int, size: int, *, shuffle: bool = False
) -> None:
    """The same bytes by signed requests of so many bytes, in order or in random order, into memory
    that is there."""

    def get(job: tuple[str, int, int]) -> None:
        url, first, last = job
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc)
        connection.request(
            "GET", f"{parts.path}?{parts.query}", headers={"Range": f"bytes={first}-{last}"}
        )
        answer, view, done = connection.getresponse(), memoryview(bytearray(last + 1 - first)), 0
        while done < len(view):
            got = answer.readinto(view[done:])
            if not got:
                raise SystemExit(f"the plain client was sent {done} bytes, status {answer.status}")
            done += got

    jobs = [
        (url, first, min(first + size, length) - 1)
        for url, length in urls
        for first in range(0, length, size)
    ]
    if shuffle:
        jobs = [jobs[i] for i in np.random.default_rng(1).permutation(len(jobs))]
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(get, jobs))


def measure(local: Path, folder: Path, rounds: int) -> dict[str, float]:
    """Rates of all contenders, printed; their ratios."""
    from obstore import sign
    from obstore.store import from_url

    store = FeatureStore(local)
    tokens = [e for e in store.entries if e.name.startswith("tokens_")]
    files, hours = from_url(URL), timedelta(hours=9)
    urls = [(sign(files, "GET", e.name, hours), e.bytes) for e in tokens]

    def cached(place: str) -> FeatureStore:
        os.environ[VARIABLE] = f"20GB:{folder / 'cache'}"
        store = opened(place)
        del os.environ[VARIABLE]
        return store

    Contender = tuple[Callable[[], object], Callable[[object], object]]
    contenders: dict[str, Contender] = {
        "plain client, whole files": (lambda: urls, lambda urls: plain_client(urls, 4, 2**40)),
        "plain client, ranges": (lambda: urls, lambda urls: plain_client(urls, 8, REQUEST_BYTES)),
        "plain client, random images": (
            lambda: urls,
            lambda urls: plain_client(urls, 8, store.spec.image_bytes(LAYER), shuffle=True),
        ),
        "in order, cold": (lambda: opened(URL), in_order),
        "in order, cold, zarr-python": (lambda: opened(URL, plain=True), in_order),
        "in order, warm cache": (lambda: cached(URL), in_order),
        "in order, local": (lambda: opened(str(local)), in_order),
        "shuffled, cold": (lambda: opened(URL), shuffled),
        "shuffled, warm cache": (lambda: cached(URL), shuffled),
        "shuffled, local": (lambda: opened(str(local)), shuffled),
    }
    in_order(cached(URL))  # fills it
    megabytes = sum(e.bytes for e in tokens) / 1e6
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    own: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (opening, work) in contenders.items():
            ready = opening()
            start, cpu = time.perf_counter(), time.process_time()
            work(ready)
            wall[name].append(time.perf_counter() - start)
            own[name].append(time.process_time() - cpu)
    print(f"{megabytes:.0f} MB; MB/s by wall time, CPU s of the client (best of {rounds})")
    rate = {name: megabytes / min(times) for name, times in wall.items()}
    cpu_of = {name: min(times) for name, times in own.items()}
    for name in contenders:
        print(f"  {name:30} {rate[name]:7.0f} {cpu_of[name]:7.2f}")
    best = max(value for name, value in rate.items() if name.startswith("plain client"))
    least = min(value for name, value in cpu_of.items() if name.startswith("plain client"))
    random_images = rate["plain client, random images"]
    ratios = {"shuffled, cold / plain, random images": rate["shuffled, cold"] / random_images}
    for what in KINDS:
        ratios[f"{what}, cold / plain client"] = rate[f"{what}, cold"] / best
        ratios[f"{what}, cold / plain client, CPU"] = least / cpu_of[f"{what}, cold"]
        ratios[f"{what}, warm / local"] = rate[f"{what}, warm cache"] / rate[f"{what}, local"]
        ratios[f"{what}, warm / local, CPU"] = (
            cpu_of[f"{what}, local"] / cpu_of[f"{what}, warm cache"]
        )
    return ratios


KINDS = ("in order", "shuffled")


def require_equal(local: Path, place: str) -> None:
    """Every image's tokens are the local store's."""
    one, other = FeatureStore(local), FeatureStore(place)
    for first in range(0, len(one), SEQUENCE):
        rows = np.arange(first, min(first + SEQUENCE, len(one)))
        assert np.array_equal(one.tokens(LAYER, rows), other.tokens(LAYER, rows))


def kill_the_server(server: Server, local: Path) -> str:
    """Killed while tokens are read: one message, never other tokens; restarted, all is there."""
    store, said = FeatureStore(URL), "the read had ended"
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(store.tokens, LAYER, np.arange(len(store)))
        time.sleep(0.3)
        server.kill()
        try:
            reading.result()
        except SpgError as error:
            said = str(error)
    server.start()
    for _ in range(60):
        try:
            StoreFiles(URL).read("zarr.json")
            break
        except SpgError:  # it lists the bucket before it can send what is in it
            time.sleep(0.5)
    require_equal(local, URL)
    return said


def kill_a_reader(local: Path, folder: Path) -> list[str]:
    """Killed while it fills the cache, at several moments; what it left, and the next reader."""
    left = []
    os.environ[VARIABLE] = f"20GB:{folder / 'killed'}"
    for moment in (0.05, 0.3, 0.6):
        reader = subprocess.Popen([sys.executable, "-c", READER, URL])
        while not list(folder.glob("killed/*/tokens*")) and reader.poll() is None:
            time.sleep(0.01)
        time.sleep(moment)
        reader.kill()
        reader.wait()
        left.append(", ".join(sorted(path.name for path in folder.glob("killed/*/tokens*"))))
        require_equal(local, URL)
        assert not list(folder.glob("killed/*/*.part"))
        for path in folder.glob("killed/*/tokens*"):
            path.unlink()
    del os.environ[VARIABLE]
    return left


def main() -> None:
    """Print the rates, the faults and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        write_store(folder, options.images, DIM)
        local, server = folder / "store.zarr", Server(folder / "server")
        server.start()
        try:
            upload(local)
            ratios = measure(local, folder, options.rounds)
            print("server killed -9 while it is read:", kill_the_server(server, local))
            print("reader killed -9, left in the cache:", kill_a_reader(local, folder))
        finally:
            server.kill()
    print(json.dumps({name: round(value, 2) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()

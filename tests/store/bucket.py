"""An S3 server in memory: what a store needs of one, and how it can fail.

Import as `from bucket import Bucket, serving`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

URL = "s3://bucket/a.zarr"
KEY = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "geheim", "AWS_REGION": "r"}


@dataclass
class Bucket:
    """The objects of one bucket by their names."""

    objects: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    """Names, in the order of the requests."""
    before: Callable[[str], bool] = lambda name: True
    """Called before an object is put; False: the connection ends, and nothing is put."""
    after: Callable[[str], bool] = lambda name: True
    """Called once it is; False: the connection ends without an answer."""
    conditional: bool = True
    """Whether it knows If-None-Match."""
    lock: Lock = field(default_factory=Lock)
    address: str = ""

    def below(self, store: str) -> dict[str, bytes]:
        """The objects of a store by their names below it."""
        start = f"{store}/"
        return {n.removeprefix(start): data for n, data in self.objects.items() if start in n}


@contextmanager
def serving(bucket: Bucket) -> Iterator[Bucket]:
    """Serve it on the loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: bytes = b"", size: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if size is None else size))
            self.send_header("Last-Modified", "Sun, 29 Nov 2026 12:00:00 GMT")
            self.send_header("ETag", '"1"')
            self.end_headers()
            self.wfile.write(body)

        def name(self) -> str | None:
            """The object that is meant; None once the request is refused."""
            path, _, self.query = self.path.partition("?")
            place, _, name = path.lstrip("/").partition("/")
            allowed = "Credential=key/" in self.headers.get("Authorization", "")
            if allowed and place == "bucket":
                return name
            code = "NoSuchBucket" if allowed else "AccessDenied"
            self.answer(404 if allowed else 403, f"<Error><Code>{code}</Code></Error>".encode())
            return None

        def do_GET(self) -> None:
            name = self.name()
            if name is None:
                return
            if "list-type=2" in self.query:
                rows = "".join(
                    f"<Contents><Key>{each}</Key><Size>{len(data)}</Size><ETag>1</ETag>"
                    "<LastModified>2026-11-29T12:00:00.000Z</LastModified></Contents>"
                    for each, data in sorted(bucket.objects.items())
                )
                self.answer(200, f"<ListBucketResult>{rows}</ListBucketResult>".encode())
                return
            data = bucket.objects.get(name)
            asked = re.fullmatch(r"bytes=(\d*)-(\d+)", self.headers.get("Range", ""))
            if data is None:
                self.answer(404)
            elif asked:
                end = int(asked[2]) + 1 if asked[1] else len(data)
                start = int(asked[1] or len(data) - int(asked[2]))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
                self.send_header("Content-Length", str(end - start))
                self.send_header("Last-Modified", "Sun, 29 Nov 2026 12:00:00 GMT")
                self.end_headers()
                self.wfile.write(data[start:end])
            else:
                self.answer(200, data)

        def do_HEAD(self) -> None:
            name = self.name()
            if name is not None:
                data = bucket.objects.get(name)
                self.answer(404 if data is None else 200, size=len(data or b""))

        def do_PUT(self) -> None:
            content, name = self.rfile.read(int(self.headers["Content-Length"])), self.name()
            if name is None:
                return
            bucket.puts.append(name)
            if not bucket.before(name):
                self.close_connection = True
                return
            with bucket.lock:
                taken = bucket.conditional and name in bucket.objects
                taken = taken and self.headers.get("If-None-Match") == "*"
                if not taken:
                    bucket.objects[name] = content
            if not bucket.after(name):
                self.close_connection = True
                return
            self.answer(412 if taken else 200)

        def do_POST(self) -> None:  # a list of objects to be removed
            content = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if self.name() is not None:
                names = re.findall("<Key>([^<]*)</Key>", content)
                for each in names:
                    bucket.objects.pop(each, None)
                rows = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in names)
                self.answer(200, f"<DeleteResult>{rows}</DeleteResult>".encode())

        def do_DELETE(self) -> None:  # as obstore 0.8 removes one
            if (name := self.name()) is not None:
                bucket.objects.pop(name, None)
                self.answer(204)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        bucket.address = f"http://127.0.0.1:{http.server_port}"
        Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield bucket
        http.shutdown()

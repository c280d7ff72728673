"""The body of a request: read within bounds, and the image's file in it."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from spg_pipe.deploy.serving.bounds import Bounds, RefusedError, TooLongError


async def read_body(request: Request, bounds: Bounds) -> bytes:
    """All of a request's body.

    Raises
    ------
    RefusedError
        If it is empty, compressed, longer than `body_bytes`, or takes more than `body_seconds`.
    ClientDisconnect
        If it breaks off.
    """
    if (coding := request.headers.get("content-encoding", "identity")) != "identity":
        raise RefusedError(415, f"The body is encoded as {coding!r}: expected is one that is not.")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > bounds.body_bytes:
        raise TooLongError(f"{int(stated):,} bytes", int(stated), bounds.body_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(bounds.body_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > bounds.body_bytes:
                    raise TooLongError(f"{len(body):,} bytes or more", len(body), bounds.body_bytes)
    except TimeoutError:
        late = f"Of the body {len(body):,} bytes came in {bounds.body_seconds:g} s"
        raise RefusedError(408, f"{late}, and the rest did not come. Send it faster.") from None
    if not body:
        raise RefusedError(400, "The body is empty: expected is an image.")
    return bytes(body)


async def file_in(request: Request, body: bytes) -> tuple[str, bytes]:
    """The name and the bytes of a file that is a body, or the one file of a form.

    A `RefusedError` if a form has none, several, or is damaged.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        return "", body

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, whole(), max_files=1, max_fields=8)
    parser.spool_max_size = len(body) + 1  # no image is written to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", None) or "its boundary is missing"
        raise RefusedError(
            400, f"The form cannot be read: {reason.rstrip('.')}. Expected is one file."
        ) from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise RefusedError(
            400, "The form has no file: expected is one image, as -F file=@part.png."
        )
    name, content = files[0].filename or "", await files[0].read()
    await form.close()
    if not content:
        raise RefusedError(400, f"The file {name!r} is empty: expected is an image.")
    return name, content

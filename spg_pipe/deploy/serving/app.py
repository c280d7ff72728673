"""The routes of a server, and what each answers; docs/serve.md is their reference."""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Annotated, Any

import numpy as np
from anyio import to_thread
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from spg_pipe.deploy.serving.body import file_in, name_of, read_body
from spg_pipe.deploy.serving.bounds import Bounds, Refused, TooLong, check_header
from spg_pipe.deploy.serving.counts import Counts, counted
from spg_pipe.deploy.serving.page import add_page
from spg_pipe.deploy.serving.tensors import (
    HEADER,
    IMAGE,
    InferenceAnswer,
    InferenceRequest,
    read_request,
    write_answer,
)
from spg_pipe.deploy.serving.waiting import Answer, Waiting, Wanted
from spg_pipe.errors import printable
from spg_pipe.predict.items import Item
from spg_pipe.predict.result import Failure, Result

VERSION = "1"
"""Of the one model; a changed detector is another server."""
_OUTPUTS = {"map": ("FP32", [-1, -1]), "score": ("FP64", [1]), "decision": ("BOOL", [1])}
"""Output → its type and shape."""


@dataclass(frozen=True)
class Service:
    """What is served."""

    name: str
    """Of the model, in addresses."""
    waiting: Waiting
    decides: bool
    """There is a threshold of scores."""
    bounds: Bounds = field(default_factory=Bounds)
    counts: Counts = field(default_factory=Counts)

    @property
    def outputs(self) -> dict[str, tuple[str, list[int]]]:
        """Those of the model → type and shape."""
        return {k: v for k, v in _OUTPUTS.items() if k != "decision" or self.decides}

    def require_model(self, name: str, version: str = VERSION) -> None:
        """A `Refused` for another model or version."""
        if (name, version) != (self.name, VERSION):
            found = f"Model {printable(name)!r}, version {printable(version)!r}, is not served"
            raise Refused(404, f"{found}: expected is {self.name!r}, version {VERSION!r}.")

    async def judged(
        self, request: Request, read: Callable[[bytes], tuple[Item, Wanted]], body: bytes, by: float
    ) -> Answer:
        """What is said of a request's image, before the loop's time `by`.

        `read` is called in a thread. A `Refused` if it takes longer.
        """
        item, wanted = await to_thread.run_sync(read, body)
        if wanted.explain and self.waiting.how.predictor.alone:
            raise Refused(400, "A bank alone uses no guides, so there is nothing to explain.")
        answer = asyncio.wrap_future(self.waiting.judged(item, wanted))
        gone = asyncio.ensure_future(_gone(request))
        left = by - asyncio.get_running_loop().time()
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({answer, gone}, timeout=max(left, 0), return_when=first)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            late = f"The image was not judged within {self.bounds.seconds:g} s (--seconds)."
            raise Refused(503, f"{late} Send it again.", retry=1)
        finally:
            answer.cancel()
            gone.cancel()


async def _gone(request: Request) -> None:
    """Until the client breaks the connection off."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


class Problem(BaseModel):
    """Why a request was refused: what was found, what was expected."""

    error: str


class ServerInfo(BaseModel):
    """What serves."""

    name: str
    version: str
    extensions: list[str]


class TensorInfo(BaseModel):
    """An input or output; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelInfo(BaseModel):
    """What is served."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class Asked(BaseModel):
    """The query of `POST /predict`."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=500)] = ""
    """What the image is called in the answer; a form's file has a name of its own."""
    group: Annotated[str, Field(max_length=500)] = ""
    """The camera or category, whose thresholds and masks apply."""
    map: bool = False
    """Add `map_png`: grey of 16 bits, value · 65535, base64."""
    overlay: bool = False
    """Add `overlay_jpeg`: the heat map over the photograph, base64."""
    photo: bool = False
    """Add `photo_jpeg`: the photograph as it was judged, upright, base64."""
    explain: bool = False
    """Add `explanation`: why it has its score (docs/explain.md)."""


_PICTURES = {"map": "map_png", "overlay": "overlay_jpeg", "photo": "photo_jpeg"}
_WORDS = {
    400: "The request cannot be understood.",
    404: "No such model or version.",
    408: "The body did not arrive in time.",
    413: "Too many bytes or pixels.",
    415: "The body is compressed.",
    422: "The image cannot be judged, or an option is wrong.",
    429: "Too many images are in hand: send it again after Retry-After.",
    503: "Stopping, or not judged in time.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _WORDS[status]} for status in statuses}


_JUDGING = _errors(400, 408, 413, 415, 422, 429, 503)
_FILE = {"type": "string", "format": "binary"}
_UPLOAD = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": _FILE},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": _FILE}, "required": ["file"]}
        },
    },
}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema with its `$defs` where they are used, so that it can stand in a larger one."""
    parts = schema.pop("$defs", {})

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return resolved(parts[value["$ref"].rpartition("/")[2]])
        return {key: resolved(each) for key, each in value.items()}

    return dict(resolved(schema))


def make_app(service: Service) -> ASGIApp:
    """The application of a server."""
    app = FastAPI(
        title="spg-pipe",
        version=metadata.version("spg-pipe"),
        description="Visual anomaly detection: the Open Inference Protocol, and image files.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    _add_errors(app, service.counts)
    _add_protocol(app, service)
    _add_inference(app, service)
    _add_predict(app, service)
    add_page(app, service.name, service.bounds)
    service.counts.watch(service.waiting)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """What was counted, for Prometheus."""
        return Response(service.counts.page(), media_type="text/plain; version=0.0.4")

    return counted(app, service.counts, lambda scope: getattr(scope.get("route"), "path", "other"))


def _add_errors(app: FastAPI, counts: Counts) -> None:
    """All errors are JSON with `error`."""

    def problem(message: str, status: int, headers: Any = None) -> Response:
        text = json.dumps({"error": printable(message)})
        return Response(text, status, headers, media_type="application/json")

    @app.exception_handler(Refused)
    def refused(_: Request, error: Refused) -> Response:
        if isinstance(error, TooLong):
            counts.refused_bytes.inc(error.size)
        headers = error.headers | ({"Connection": "close"} if error.status == 408 else {})
        return problem(str(error), error.status, headers)

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> Response:
        return problem(f"{error.detail}. GET /openapi.json lists what there is.",
                       error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    def wrong(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return problem(f"{place}: {first['msg']}", 422)

    @app.exception_handler(ClientDisconnect)
    def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    def broken(_: Request, __: Exception) -> Response:
        return problem("The server could not answer. Send the request again.", 503)


def _add_protocol(app: FastAPI, service: Service) -> None:
    """Health and metadata."""

    @app.get("/v2")
    def server() -> ServerInfo:
        """What serves."""
        version = metadata.version("spg-pipe")
        return ServerInfo(name="spg-pipe", version=version, extensions=["binary_tensor_data"])

    @app.get("/v2/health/live", response_class=Response)
    def live() -> Response:
        """The process runs."""
        return Response()

    @app.get("/v2/health/ready", response_class=Response, responses=_errors(503))
    def ready() -> Response:
        """Images are taken."""
        if not service.waiting.ready:
            raise Refused(503, "The server is being stopped.")
        return Response()

    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):

        @app.get(path, responses=_errors(404, 422), operation_id=f"model{'_v' * ('versions' in path)}")
        def model(name: str, version: str = VERSION) -> ModelInfo:
            """The model's inputs and outputs."""
            service.require_model(name, version)
            shape = [1, -1, -1, 3]
            return ModelInfo(
                name=name,
                versions=[VERSION],
                platform="spg-pipe",
                inputs=[TensorInfo(name=IMAGE, datatype="UINT8", shape=shape)],
                outputs=[
                    TensorInfo(name=output, datatype=kind, shape=shape)
                    for output, (kind, shape) in service.outputs.items()
                ],
            )

        @app.get(f"{path}/ready", response_class=Response, responses=_errors(404, 422, 503))
        def model_ready(name: str, version: str = VERSION) -> Response:
            """The model judges images."""
            service.require_model(name, version)
            return ready()


def _add_inference(app: FastAPI, service: Service) -> None:
    """`infer`, of both addresses."""
    body = _inlined(InferenceRequest.model_json_schema())
    content = {"application/json": {"schema": body}, "application/octet-stream": {"schema": _FILE}}

    async def infer(request: Request, name: str, version: str = VERSION) -> Response:
        """Judge the image of a tensor.

        `image` is UINT8 [1, H, W, 3], as JSON or as binary data behind the JSON (see
        `Inference-Header-Content-Length`), or BYTES [1]: an image's file, as binary data.
        """
        service.require_model(name, version)
        by = asyncio.get_running_loop().time() + service.bounds.seconds
        with service.waiting.place():
            data = await read_body(request, service.bounds)
            header = request.headers.get(HEADER)
            asked = await to_thread.run_sync(
                read_request, data, header, service.outputs, service.bounds
            )

            def read(_: bytes) -> tuple[Item, Wanted]:
                source, exif = asked.image, service.waiting.reading.exif
                if isinstance(source, bytes):
                    check_header("image", source, service.bounds, exif=exif)
                needed = any(output.name == "map" for output in asked.outputs)
                return Item("image", source, asked.group), Wanted(values=needed)

            answer = await service.judged(request, read, data, by)
            line = answer.line
            if isinstance(line, Failure):
                raise Refused(422, line.error)

            def decision() -> np.ndarray:
                if line.decision is None:
                    raise Refused(422, "There is no threshold for images of this group.")
                return np.array([line.decision == "anomalous"])

            values = {
                "map": lambda: answer.values,
                "score": lambda: np.array([line.score]),
                "decision": decision,
            }
            made = await to_thread.run_sync(write_answer, asked, (name, VERSION), values)
        if made.json_length is None:
            return Response(made.body, media_type="application/json")
        return Response(
            made.body,
            media_type="application/octet-stream",
            headers={HEADER: str(made.json_length)},
        )

    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        app.post(
            path,
            response_class=Response,
            responses=_JUDGING
            | _errors(404)
            | {200: {"model": InferenceAnswer, "content": {"application/octet-stream": {}}}},
            openapi_extra={"requestBody": {"required": True, "content": content}},
        )(infer)


def _add_predict(app: FastAPI, service: Service) -> None:
    """`POST /predict`."""

    @app.post(
        "/predict",
        response_class=Response,
        responses=_JUDGING | {200: {"model": Result}},
        openapi_extra={"requestBody": _UPLOAD},
    )
    async def predict(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        """Judge an image's file: the body itself, or the one file of a form.

        The answer is a line of `spg-pipe predict`; options add fields to it.
        """
        by = asyncio.get_running_loop().time() + service.bounds.seconds
        with service.waiting.place():
            data = await read_body(request, service.bounds)
            given, content = await file_in(request, data)
            name = name_of(given or asked.name)
            wanted = Wanted(
                map=asked.map, overlay=asked.overlay, photo=asked.photo, explain=asked.explain
            )

            def read(file: bytes) -> tuple[Item, Wanted]:
                check_header(name, file, service.bounds, exif=service.waiting.reading.exif)
                return Item(name, file, asked.group), wanted

            answer = await service.judged(request, read, content, by)
            status = 422 if isinstance(answer.line, Failure) else 200
            text = await to_thread.run_sync(_with_more, answer)
        return Response(text, status, media_type="application/json")


def _with_more(answer: Answer) -> str:
    """An answer as JSON: the line, and what was wanted besides."""
    more: dict[str, object] = {
        _PICTURES[name]: base64.b64encode(file).decode() for name, file in answer.pictures.items()
    }
    if answer.why:
        more["explanation"] = json.loads(answer.why)
    return f"{answer.text[:-1]},{json.dumps(more)[1:]}" if more else answer.text

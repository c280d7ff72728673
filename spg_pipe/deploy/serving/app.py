"""The application: its routes, and errors as JSON; docs/serve.md is their reference."""

import json
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from spg_pipe.deploy.serving.bounds import RefusedError, TooLongError
from spg_pipe.deploy.serving.counts import Counts, counted
from spg_pipe.deploy.serving.documents import Asked, ModelInfo, ServerInfo, TensorInfo, errors
from spg_pipe.deploy.serving.judging import add_inference, add_predict
from spg_pipe.deploy.serving.page import add_page
from spg_pipe.deploy.serving.service import VERSION, Service
from spg_pipe.deploy.serving.tensors import IMAGE
from spg_pipe.errors import printable


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
    add_inference(app, service)
    add_predict(app, service)
    add_page(app, service)
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

    @app.exception_handler(RefusedError)
    def refused(_: Request, error: RefusedError) -> Response:
        if isinstance(error, TooLongError):
            counts.refused_bytes.inc(error.size)
        headers = error.headers | ({"Connection": "close"} if error.status == 408 else {})
        return problem(str(error), error.status, headers)

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> Response:
        allowed = (error.headers or {}).get("Allow")
        said = f"{error.detail}: expected is {allowed}" if allowed else error.detail
        text = f"{said}. GET /openapi.json lists what there is."
        return problem(text, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        known = {"bool_parsing": "true or false", "extra_forbidden": ", ".join(Asked.model_fields)}
        expected = known.get(first["type"], first["msg"])
        name, value = (printable(str(each))[:50] for each in (first["loc"][-1], first["input"]))
        return problem(f"Found: the option {name}={value}. Expected: {expected}.", 422)

    @app.exception_handler(ClientDisconnect)
    def disconnected(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    def broken(_: Request, __: Exception) -> Response:
        # It is raised again, so that uvicorn logs it with its trace.
        return problem(
            "The server could not answer, by a fault of its own that it has logged.", 500
        )


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

    @app.get("/v2/health/ready", response_class=Response, responses=errors(503))
    def ready() -> Response:
        """Images are taken."""
        service.require_ready()
        return Response()

    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):

        @app.get(
            path, responses=errors(404, 422), operation_id=f"model{'_v' * ('versions' in path)}"
        )
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

        @app.get(f"{path}/ready", response_class=Response, responses=errors(404, 422, 503))
        def model_ready(name: str, version: str = VERSION) -> Response:
            """The model judges images."""
            service.require_model(name, version)
            return ready()

"""The two ways to have an image judged: as a tensor, and as a file."""

import base64
import json
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated

import numpy as np
from anyio import to_thread
from fastapi import FastAPI, Query, Request, Response

from spg_pipe.deploy.serving.body import file_in, read_body
from spg_pipe.deploy.serving.bounds import RefusedError
from spg_pipe.deploy.serving.documents import FILE, JUDGING, UPLOAD, Asked, errors, inlined
from spg_pipe.deploy.serving.service import VERSION, Service
from spg_pipe.deploy.serving.tensors import (
    HEADER,
    InferenceAnswer,
    InferenceRequest,
    Tensors,
    read_request,
    write_answer,
)
from spg_pipe.deploy.serving.waiting import Answer, Wanted
from spg_pipe.predict.items import Item
from spg_pipe.predict.result import Failure, Result


def add_inference(app: FastAPI, service: Service) -> None:
    """`infer`, of both addresses."""
    body = inlined(InferenceRequest.model_json_schema())
    content = {"application/json": {"schema": body}, "application/octet-stream": {"schema": FILE}}

    async def infer(request: Request, name: str, version: str = VERSION) -> Response:
        """Judge the image of a tensor.

        `image` is UINT8 [1, H, W, 3], as JSON or as binary data behind the JSON (see
        `Inference-Header-Content-Length`), or BYTES [1]: an image's file, as binary data.
        """
        service.require_model(name, version)
        async with service.place():
            asked = await _tensors(request, service)
            item = Item("unnamed", asked.image, asked.group)
            values = _values(await service.judged(request, item, Wanted()))
            made = await to_thread.run_sync(
                write_answer, asked, (name, VERSION), values, limiter=service.parsing
            )
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
            responses=JUDGING
            | errors(404)
            | {200: {"model": InferenceAnswer, "content": {"application/octet-stream": {}}}},
            openapi_extra={"requestBody": {"required": True, "content": content}},
        )(infer)


async def _tensors(request: Request, service: Service) -> Tensors:
    """What a request holds, without its body."""
    body, header = await read_body(request, service.bounds), request.headers.get(HEADER)
    return await to_thread.run_sync(
        read_request, body, header, service.outputs, service.bounds, limiter=service.parsing
    )


def _values(answer: Answer) -> dict[str, Callable[[], np.ndarray]]:
    """What each output of an answer holds; a `RefusedError` if its image could not be judged."""
    line, anomaly_map = answer.line, answer.anomaly_map
    if isinstance(line, Failure):
        raise RefusedError(422, line.error)

    def decision() -> np.ndarray:
        if line.decision is None:
            raise RefusedError(422, "There is no threshold for images of this group.")
        return np.array([line.decision == "anomalous"])

    return {
        "map": lambda: anomaly_map,
        "score": lambda: np.array([line.score]),
        "decision": decision,
    }


def add_predict(app: FastAPI, service: Service) -> None:
    """`POST /predict`."""

    @app.post(
        "/predict",
        response_class=Response,
        responses=JUDGING | {200: {"model": Result}},
        openapi_extra={"requestBody": UPLOAD},
    )
    async def predict(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        """Judge an image's file: the body itself, or the one file of a form.

        The answer is a line of `spg-pipe predict`; options add fields to it.
        """
        async with service.place():
            given, content = await file_in(request, await read_body(request, service.bounds))
            name = (given or asked.name)[:500]
            item = Item(name if PurePosixPath(name).name else "unnamed", content, asked.group)
            answer = await service.judged(request, item, asked)
            status = 422 if isinstance(answer.line, Failure) else 200
            text = await to_thread.run_sync(_with_more, answer)
        return Response(text, status, media_type="application/json")


def _with_more(answer: Answer) -> str:
    """An answer as JSON: the line, and what was wanted besides."""
    more: dict[str, object] = {
        name: base64.b64encode(file).decode() for name, file in answer.pictures.items()
    }
    if answer.why:
        more["explanation"] = json.loads(answer.why)
    return f"{answer.text[:-1]},{json.dumps(more)[1:]}" if more else answer.text

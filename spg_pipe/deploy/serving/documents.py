"""What /openapi.json says of requests and answers, besides tensors and predictions."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import JsonSchemaValue as Json

from spg_pipe.deploy.serving.waiting import Wanted


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


class Asked(Wanted):
    """The query of `POST /predict`."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=500)] = ""
    """What the image is called in the answer; a form's file has a name of its own."""
    group: Annotated[str, Field(max_length=500)] = ""
    """The camera or category, whose thresholds and masks apply."""


_WORDS = {
    400: "The request cannot be understood.",
    404: "No such model or version.",
    408: "The body did not arrive in time.",
    413: "Too many bytes or pixels.",
    415: "The body is compressed.",
    422: "The image cannot be judged, or an option is wrong.",
    429: "Too many images are in hand: send it again after Retry-After.",
    503: "Stopping, not judged in time, out of memory, or after the calibration's last day.",
}


def errors(*statuses: int) -> dict[int | str, Json]:
    """Answers of a route that are errors."""
    return {status: {"model": Problem, "description": _WORDS[status]} for status in statuses}


JUDGING = errors(400, 408, 413, 415, 422, 429, 503)
FILE = {"type": "string", "format": "binary"}
UPLOAD = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": FILE},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": FILE}, "required": ["file"]}
        },
    },
}


def inlined(schema: Json) -> Json:
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

"""The Open Inference Protocol, version 2: requests with tensors in JSON or binary, and answers.

Specified by KServe ("Open Inference Protocol", REST) and Triton ("binary tensor data extension").
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from spg_pipe.artefacts.record import first_fault
from spg_pipe.deploy.serving.bounds import Bounds, RefusedError, require_few_pixels

HEADER = "Inference-Header-Content-Length"
"""How many bytes of a body are its JSON; binary tensors follow."""
IMAGE = "image"
JSON_BYTES = 1_000_000
"""Of a request's JSON. Python reads it without letting another thread go on: 0.3 s at the worst."""
JSON_VALUES = 2**21
"""Of a map that is written as JSON: 20 bytes each."""
TYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_}
_PARAMETERS = 16


def _few(given: object) -> object:
    """Refuse many parameters at once: pydantic would list several faults of each."""
    if isinstance(given, dict) and len(given) > _PARAMETERS:
        raise ValueError(f"{len(given):,} parameters, expected are at most {_PARAMETERS}")
    return given


Parameters = Annotated[
    dict[str, bool | int | float | str], Field(max_length=_PARAMETERS), BeforeValidator(_few)
]
Name = Annotated[str, Field(max_length=200)]


class Input(BaseModel):
    """A tensor of a request."""

    name: Name
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=8)]
    datatype: Name
    parameters: Parameters = {}
    data: Any = None
    """Flat or nested; absent if it follows the JSON (`binary_data_size`)."""


class Output(BaseModel):
    """What a request asks for."""

    name: Name
    parameters: Parameters = {}


class InferenceRequest(BaseModel):
    """The JSON of a request."""

    id: Name | None = None
    parameters: Parameters = {}
    inputs: Annotated[list[Input], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[Output], Field(max_length=8)] | None = None


class OutputTensor(BaseModel):
    """A tensor of an answer."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, int] | None = None
    """`binary_data_size`, if the values follow the JSON."""
    data: list[float] | list[bool] | None = None


class InferenceAnswer(BaseModel):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class Tensors(NamedTuple):
    """A request, read."""

    request: InferenceRequest
    image: np.ndarray | bytes
    """(H, W, 3) uint8, or an image's file."""
    outputs: list[Output]

    @property
    def group(self) -> str:
        """The camera or category, whose thresholds apply."""
        return str(self.request.parameters.get("group", ""))

    def binary(self, output: Output) -> bool:
        """Whether its values follow the JSON."""
        default = _flag(self.request.parameters, "binary_data_output", False)
        return _flag(output.parameters, "binary_data", default)


def read_request(
    body: bytes, header: str | None, offered: Iterable[str], bounds: Bounds
) -> Tensors:
    """A request's image and what is asked of it.

    Parameters
    ----------
    header : str, optional
        The value of `HEADER`; None: the body is JSON alone.
    offered : iterable of str
        Outputs that there are.

    Raises
    ------
    RefusedError
        With what was found and what was expected.
    """
    length = len(body)
    if header is not None:
        digits = header if header.isascii() and header.isdecimal() and len(header) <= 12 else "0"
        if not 0 < int(digits) <= len(body):
            raise _bad(f"{HEADER} is {header[:50]!r}", f"how many of {len(body)} bytes are JSON")
        length = int(digits)
    if length > JSON_BYTES:
        raise RefusedError(
            413,
            f"The JSON has {length:,} bytes, and at most {JSON_BYTES:,} are read. Send the image "
            f"as binary data behind the JSON ({HEADER}), or its file to /predict.",
        )
    try:
        request = InferenceRequest.model_validate_json(body[:length])
    except ValidationError as error:
        raise _bad(first_fault(error), "the JSON of an inference request") from error
    given, names = request.inputs[0], list(offered)
    if given.name != IMAGE:
        raise _bad(f"the input is named {given.name!r}", f"{IMAGE!r}")
    outputs = request.outputs or [Output(name=name) for name in names]
    if len({output.name for output in outputs}) < len(outputs):
        raise _bad("an output is asked for twice", "each name once")
    for output in outputs:
        if output.name not in names:
            known = f"one of {', '.join(names)}; a decision needs a threshold (spg-pipe calibrate)"
            raise _bad(f"the output {output.name!r} is asked for", known)
    image = _image(given, memoryview(body)[length:], bounds)
    given.data = None  # of an image that waits nothing else is kept
    tensors = Tensors(request, image, outputs)
    for output in outputs:
        tensors.binary(output)  # refuses what is no boolean before the image is judged
    return tensors


def _bad(given: str, expected: str) -> RefusedError:
    return RefusedError(400, f"Found: {given}. Expected: {expected}.")


def _flag(parameters: Mapping[str, object], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _bad(f"{name} is {str(value)[:50]!r}", "true or false")
    return value


def _image(given: Input, tail: memoryview, bounds: Bounds) -> np.ndarray | bytes:
    """The image of an input; `tail` is what follows the JSON."""
    size = given.parameters.get("binary_data_size", 0 if given.data is not None else None)
    if size is None:
        raise _bad("no data", f"`data`, or binary data with `binary_data_size` and {HEADER}")
    if isinstance(size, bool) or size != len(tail):
        raise _bad(f"{len(tail)} bytes behind the JSON", f"binary_data_size, {size}")
    if given.datatype == "BYTES":
        return _file(given, tail)
    if given.datatype != "UINT8":
        raise _bad(f"datatype {given.datatype!r}", "UINT8 [1, H, W, 3], or BYTES [1]")
    shape = given.shape[1:] if len(given.shape) == 4 and given.shape[0] == 1 else given.shape
    if len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise _bad(f"shape {given.shape}", "[1, height, width, 3]: one image, RGB")
    require_few_pixels(shape[0] * shape[1], bounds)
    values = _integers(given.data) if given.data is not None else np.frombuffer(tail, np.uint8)
    if values.size != math.prod(shape):
        raise _bad(f"{values.size} values", f"{math.prod(shape)}, as the shape {given.shape} says")
    return values.reshape(shape)


def _integers(data: object) -> np.ndarray:
    """A flat or nested list of JSON as uint8, refused at the first thing that is no integer."""
    expected = "a list of integers from 0 to 255"
    values = data if isinstance(data, list) else []
    while values and isinstance(values[0], list):
        if set(map(type, values)) != {list}:
            raise _bad("data that are no list of integers", expected)
        values = list(chain.from_iterable(values))
    if set(map(type, values)) != {int}:
        raise _bad("data that are no list of integers", expected)
    try:
        return np.frombuffer(bytes(values), np.uint8)
    except ValueError:
        raise _bad(f"values from {min(values)} to {max(values)}", expected) from None


def _file(given: Input, tail: memoryview) -> bytes:
    """The one element of a tensor of BYTES: its length, 4 bytes little-endian, and the file."""
    if given.data is not None or given.shape not in ([1], [1, 1]):
        raise _bad(f"BYTES of shape {given.shape}", "shape [1], a file as binary data")
    if len(tail) < 5 or int.from_bytes(tail[:4], "little") != len(tail) - 4:
        raise _bad(f"an element of BYTES in {len(tail)} bytes", "its length, and a file")
    return bytes(tail[4:])


class Answered(NamedTuple):
    """The body of an answer."""

    body: bytes
    json_length: int | None
    """Of its JSON, if binary data follow."""


def write_answer(
    asked: Tensors, model: tuple[str, str], values: Mapping[str, Callable[[], np.ndarray]]
) -> Answered:
    """The outputs that were asked for.

    Parameters
    ----------
    model : (name, version)
    values : dict of output → callable
        Its values, float32, float64 or bool.

    A `RefusedError` for a map of more than `JSON_VALUES` in JSON.
    """
    tensors, tails = list[dict[str, object]](), list[memoryview]()
    for output in asked.outputs:
        array = values[output.name]()
        types = {np.dtype(dtype): name for name, dtype in TYPES.items()}
        tensor: dict[str, object] = {"name": output.name, "datatype": types[array.dtype]}
        tensor["shape"] = list(array.shape)
        if asked.binary(output):
            tails.append(np.ascontiguousarray(array).data)
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        elif array.size > JSON_VALUES:
            most = f"binary data, or a map of at most {JSON_VALUES:,} values"
            raise _bad(f"a map of {array.size:,} values as JSON", most)
        else:
            tensor["data"] = array.reshape(-1).tolist()
        tensors.append(tensor)
    content: dict[str, object] = {"model_name": model[0], "model_version": model[1]}
    content |= {} if asked.request.id is None else {"id": asked.request.id}
    text = json.dumps(content | {"outputs": tensors}, allow_nan=False).encode()
    return Answered(b"".join([text, *tails]), len(text) if tails else None)

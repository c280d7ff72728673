"""The Open Inference Protocol, version 2: requests with tensors in JSON or binary, and answers.

Specified by KServe ("Open Inference Protocol", REST) and Triton ("binary tensor data extension").
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from spg_pipe.artefacts.record import first_fault
from spg_pipe.deploy.serving.bounds import Bounds, RefusedError, require_few_pixels

HEADER = "Inference-Header-Content-Length"
"""How many bytes of a body are its JSON; binary tensors follow."""
IMAGE = "image"
JSON_VALUES = 2**21
"""Of a map that is written as JSON: 20 bytes each."""
TYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_}
Parameters = dict[str, bool | int | float | str]
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
        default = self.request.parameters.get("binary_data_output", False)
        return bool(output.parameters.get("binary_data", default))


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
        if not (header.isascii() and header.isdecimal() and 0 < int(header) <= len(body)):
            raise _bad(f"{HEADER} is {header!r}", f"how many of the {len(body)} bytes are JSON")
        length = int(header)
    try:
        request = InferenceRequest.model_validate_json(body[:length])
    except ValidationError as error:
        raise _bad(first_fault(error), "the JSON of an inference request") from error
    given, names = request.inputs[0], list(offered)
    if given.name != IMAGE:
        raise _bad(f"the input is named {given.name!r}", f"{IMAGE!r}")
    outputs = request.outputs or [Output(name=name) for name in names]
    for output in outputs:
        if output.name not in names:
            known = f"one of {', '.join(names)}; a decision needs a threshold (spg-pipe calibrate)"
            raise _bad(f"the output {output.name!r} is asked for", known)
    image = _image(given, memoryview(body)[length:], bounds)
    given.data = None  # of an image that waits nothing else is kept
    return Tensors(request, image, outputs)


def _bad(found: str, expected: str) -> RefusedError:
    return RefusedError(400, f"Found: {found}. Expected: {expected}.")


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
    """A list of JSON as uint8."""
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):  # ragged
        values = np.array(None)
    if values.dtype.kind not in "iu" or not values.size:
        raise _bad("data that are no list of integers", "integers from 0 to 255")
    if values.min() < 0 or values.max() > 255:
        raise _bad(f"values from {values.min()} to {values.max()}", "integers from 0 to 255")
    return values.astype(np.uint8)


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
    tensors, tails = list[dict[str, object]](), list[bytes]()
    for output in asked.outputs:
        array = values[output.name]()
        types = {np.dtype(dtype): name for name, dtype in TYPES.items()}
        tensor: dict[str, object] = {"name": output.name, "datatype": types[array.dtype]}
        tensor["shape"] = list(array.shape)
        if asked.binary(output):
            tails.append(array.tobytes())
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

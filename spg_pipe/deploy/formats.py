"""The files that a graph is written to, and each of them as a function again."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from spg_pipe.backbones.openvino_engine import import_openvino
from spg_pipe.deploy.graph import OUTPUTS
from spg_pipe.deploy.resize import largest_side
from spg_pipe.errors import SpgError

Format = Literal["onnx", "openvino", "torch"]
Judge = Callable[[np.ndarray], list[np.ndarray]]
"""(H, W, 3) uint8 → `OUTPUTS`."""
ONNX, OPENVINO, TORCH = "model.onnx", "openvino/model.xml", "model.pt2"
OPSET = 18
_MOST_BYTES = 1_900_000_000
"""Of weights in one ONNX file: protocol buffers end at 2 GiB."""


def traced(graph: torch.nn.Module, size: int) -> Any:
    """The graph of a backbone of S×S as a program without Python (`torch.export.ExportedProgram`).

    H and W are any up to `largest_side`. An `SpgError` if PyTorch cannot trace the backbone.
    """
    sides = {
        1 + number: torch.export.Dim(name, min=1, max=largest_side(size))
        for number, name in enumerate(("height", "width"))
    }
    example = torch.zeros(1, 320, 400, 3, dtype=torch.uint8)
    with _quietly("trace"), torch.no_grad():
        graph(example)  # makes the constants, which NumPy and SciPy take part in
        return torch.export.export(graph, (example,), dynamic_shapes=({**sides},), strict=False)


def write_onnx(program: Any, outputs: int, path: Path, facts: Mapping[str, str]) -> None:
    """Write a traced graph as one ONNX file; with more than 1.9 GB of weights these lie beside it.

    `facts` become its metadata. An `SpgError` if the extra is missing, or an operation is unknown.
    """
    _require("onnxscript", "export")
    with _quietly("write as ONNX"):
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=list(OUTPUTS[:outputs]),
            opset_version=OPSET,
            verbose=False,
        )
    if made is None:
        raise SpgError("PyTorch gave no ONNX program. Report this as a bug of spg-pipe.")
    import onnx_ir

    model = made.model
    model.producer_name = "spg-pipe"
    model.metadata_props.update(facts)
    (image,) = model.graph.inputs
    image.shape = onnx_ir.Shape([1, "height", "width", 3])
    model.graph.outputs[0].shape = onnx_ir.Shape(["height", "width"])
    weights = [value.const_value for value in model.graph.initializers.values()]
    size = sum(int(each.nbytes) for each in weights if each is not None)
    made.save(path, external_data=size > _MOST_BYTES)


def write_openvino(source: Path, path: Path) -> None:
    """Turn an ONNX file into OpenVINO's two, in float32; an `SpgError` if the extra is missing."""
    _require("openvino", "openvino")
    openvino = import_openvino()
    model = openvino.Core().read_model(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)


def write_torch(program: Any, path: Path) -> None:
    """Write a traced graph for `torch.export.load`."""
    with _quietly("save"):
        torch.export.save(program, path)


def read_onnx(path: Path) -> Judge:
    """An ONNX file in ONNX Runtime on the CPU."""
    _require("onnxruntime", "export")
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image[None]})


def read_openvino(path: Path) -> Judge:
    """OpenVINO's files on the CPU, in float32 also where it would take bfloat16."""
    openvino = import_openvino()
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def judge(image: np.ndarray) -> list[np.ndarray]:
        outputs = model([image[None]])
        return [outputs[number].copy() for number in range(len(model.outputs))]

    return judge


def read_torch(path: Path) -> Judge:
    """A `torch.export` file in PyTorch on the CPU."""
    module = torch.export.load(path).module()

    def judge(image: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [each.numpy() for each in module(torch.from_numpy(image.copy())[None])]

    return judge


def _require(package: str, extra: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise SpgError(
            f"An export needs the package {package}, which is not installed: run "
            f"`pip install 'spg-pipe[{extra}]'`."
        )


def _reason(error: BaseException) -> str:
    """What lies at the bottom of a chain of errors, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def _quietly(what: str) -> Iterator[None]:
    """Without what the exporter logs; its errors, of many types, become an `SpgError`."""
    import warnings

    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    loggers = {name: logging.getLogger(name) for name in names}
    levels = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:
        raise SpgError(
            f"PyTorch {torch.__version__} cannot {what} this detector: {_reason(error)}. Another "
            "version of PyTorch and onnxscript may, or another backbone."
        ) from error
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])

"""A network on a CPU by OpenVINO, in bfloat16."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from spg_pipe.backbones.base import LayerTokens, Network, Run, stand_in


def import_openvino() -> Any:
    """OpenVINO without its telemetry: it tells its maker of each import unless told not to."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class _Graph(nn.Module):
    """A network as one function of an image: (1, 3, S, S) → what OpenVINO computes of each layer.

    That is the patches, and CLS where the model has one. What stands for CLS is a mean, which stays
    in float32, outside.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.wanted = network, sorted(network.indices.values())
        self.has_cls = network.spec.prefix == "cls"
        self.grids: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tokens = list(self.network.run(images, self.wanted))
        self.grids = [each.grid for each in tokens]
        patches = tuple(each.patches for each in tokens)
        return patches + (tuple(each.prefix for each in tokens) if self.has_cls else ())


def openvino_run(network: Network) -> Run:
    """The network's `run` by OpenVINO, image by image: a token never depends on its batch.

    Threads are those of the calling thread's `torch.get_num_threads()`, so that extraction's
    workers have a core each and a single image has them all. Conversion takes a second or more.
    """
    openvino = import_openvino()
    spec, graph = network.spec, _Graph(network)
    size = spec.preprocess.size
    example = torch.zeros(1, 3, size, size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: sizes become constants, as they should
        # Not by convert_model itself, whose check of the trace takes most of its time.
        traced = torch.jit.trace(graph, example, check_trace=False)
        model = openvino.convert_model(traced, input=list(example.shape))
    grids, has_cls = graph.grids, graph.has_cls
    del graph, traced
    compiled: dict[int, Any] = {}
    lock = threading.Lock()

    def infer(image: Tensor) -> list[Tensor]:
        threads = torch.get_num_threads()
        with lock:
            if threads not in compiled:
                compiled[threads] = openvino.Core().compile_model(model, "CPU", _options(threads))
        outputs = compiled[threads].create_infer_request().infer([image.numpy()])
        return [torch.from_numpy(outputs[number]) for number in range(len(outputs))]

    def run(images: Tensor, wanted: list[int]) -> list[LayerTokens]:
        each = [infer(image) for image in images.contiguous().split(1)]
        values = [torch.cat(parts) for parts in zip(*each, strict=True)]
        patches, cls = values[: len(grids)], values[len(grids) :]
        prefix = cls if has_cls else [stand_in(value, spec.prefix) for value in patches]
        return [LayerTokens(*parts) for parts in zip(patches, prefix, grids, strict=True)]

    return run


def _options(threads: int) -> dict[str, str | int]:
    """For calls from as many threads as the machine's cores allow, on so many cores each."""
    streams = max(1, (os.cpu_count() or 1) // threads)
    return {
        "INFERENCE_PRECISION_HINT": "bf16",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        "ENABLE_CPU_PINNING": False,  # other work may have those cores
    }

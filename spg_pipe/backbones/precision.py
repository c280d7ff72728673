"""How a network computes: in float32, or in bfloat16 where the processor has instructions for it.

`BackboneSpec.precision` says what may be; the machine, by the one rule of `engine_of`, what is. The
tokens of all engines differ by the rounding of bfloat16 at most, and are float32.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from copy import copy
from typing import Literal

import torch
from torch import Tensor

from spg_pipe.backbones.base import LayerTokens, Network, Run
from spg_pipe.recipe.data import Precision

Engine = Literal["float32", "autocast", "openvino"]
CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""As torch names them: of x86 the first two, of ARM the others. A CPU has those of its kind."""


def engine_of(device: str) -> Engine:
    """What computes a network of precision bfloat16 on a device of this machine.

    A device without the instructions computes in float32: emulation would take 6 (ViT-S) to 15
    times as long (EfficientNet-Lite0) for tokens that are further from the exact ones. A CPU that
    has them uses OpenVINO where that is installed, everything else PyTorch's autocast.
    """
    if not has_bfloat16(device):
        return "float32"
    on_cpu = torch.device(device).type == "cpu"
    return "openvino" if on_cpu and importlib.util.find_spec("openvino") else "autocast"


def has_bfloat16(device: str) -> bool:
    """Whether a device has the instructions; other kinds than CPU and CUDA are not asked."""
    kind = torch.device(device).type
    if kind == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind != "cpu" or any(_cpu_capabilities().get(name) for name in CPU_INSTRUCTIONS)


def computed_by(precision: Precision, device: str) -> str | None:
    """What a store says of how its tokens were computed; None where no choice was left."""
    if precision == "float32":
        return None
    engine = engine_of(device)
    if engine == "openvino":
        return f"bfloat16 by OpenVINO {importlib.metadata.version('openvino')}"
    autocast = engine == "autocast"
    return "bfloat16 by PyTorch's autocast" if autocast else "bfloat16, computed in float32"


def with_precision(
    network: Network,
    precision: Precision,
    device: str,
    say: Callable[[str], None],
    *,
    exact: bool = False,
) -> Network:
    """The same network, which may compute in this precision; its tokens are float32 in any case.

    Parameters
    ----------
    device : str
        Where the network's weights are.
    say : callable
        Told, once, where bfloat16 is no faster here, or could be faster.
    exact : bool
        It computes in float32 all the same: for a graph, which other runtimes compute.
    """
    if precision == "float32":
        return network
    changed = copy(network)
    changed.spec = network.spec.model_copy(update={"precision": precision})
    if exact:
        return changed
    engine = engine_of(device)
    if engine == "float32":
        say(_no_help(device))
    elif engine == "openvino":
        from spg_pipe.backbones.openvino_engine import openvino_run

        changed.run = openvino_run(network)
    else:
        changed.run = _autocast(network.run, torch.device(device).type)
        if torch.device(device).type == "cpu":
            say(
                "Note: backbone.precision bfloat16 is computed by PyTorch here. OpenVINO is "
                "faster: pip install 'spg-pipe[openvino]'."
            )
    return changed


def _autocast(run: Run, kind: str) -> Run:
    def half(images: Tensor, wanted: list[int]) -> list[LayerTokens]:
        with torch.autocast(kind, torch.bfloat16):
            return list(run(images, wanted))

    return half


def _no_help(device: str) -> str:
    what, reason = f"GPU ({device})", "compute capability below 8.0"
    if torch.device(device).type == "cpu":
        lacking = ", ".join(name for name in CPU_INSTRUCTIONS if name in _cpu_capabilities())
        what = "processor"
        reason = f"{torch.backends.cpu.get_cpu_capability()}, without {lacking}"
    return (
        f"Note: backbone.precision bfloat16 does not help here. This {what} has no bfloat16 "
        f"instructions ({reason}): the network computes in float32, as slowly as with precision "
        "float32. Leave it out, unless the artefacts are for a machine that has them: they do not "
        "fit those of precision float32."
    )


def _cpu_capabilities() -> Mapping[str, object]:
    known = getattr(torch.cpu, "get_capabilities", None)
    if known is not None:
        return known()
    # torch < 2.10 has no public word of them, and none of ARM's.
    return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported()}

"""What this machine has of what a command asks for: the device, and processor cores."""

import os

from spg_pipe.errors import SpgError


def choose_device(device: str) -> str:
    """`auto` becomes cuda where there is one, otherwise cpu.

    An `SpgError` if the device does not exist here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise SpgError(
            f"Device {device!r} cannot be used here: {first}. Try --device cpu."
        ) from error
    return device


def cpu_workers(workers: int | None) -> int:
    """Threads for decoding: as asked, or one for each core that this process may use."""
    if workers is not None:
        return workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

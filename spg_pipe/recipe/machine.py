"""What this machine has of what a command asks for: the device, and processor cores."""

import os
import re

from spg_pipe.errors import SpgError, UsageError

_ADDRESS = re.compile(r"((tcp|tls)://)?([^][/:\s]+|\[[0-9a-fA-F:.]+]):[0-9]{1,5}")
"""Of a Dask scheduler."""


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


def local_workers(cluster: str | None) -> int | None:
    """How many processes `--cluster local[:N]` are, one for each core if N is left out; None for
    the address of a scheduler, and without a cluster.

    A `UsageError` if it is neither.
    """
    kind, colon, number = (cluster or "").lower().partition(":")
    address = kind != "local" and _ADDRESS.fullmatch(cluster or "")
    if cluster is None or (address and int(cluster.rpartition(":")[2]) < 2**16):
        return None
    if kind == "local" and not colon:
        return cpu_workers(None)
    most = max(8, 4 * cpu_workers(None))  # each holds a backbone or a detector
    if kind == "local" and re.fullmatch("[1-9][0-9]{0,3}", number) and int(number) <= most:
        return int(number)
    raise UsageError(
        f"--cluster {cluster!r}: expected local, local:N (1 to {most} on this machine), "
        "or an address as `dask scheduler` prints it, tcp://host:8786."
    )

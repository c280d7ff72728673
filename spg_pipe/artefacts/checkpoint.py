"""What a killed training run needs to go on exactly where it was.

One file beside the artefact that is being made: a SHA-256, then safetensors with the rest as JSON
in their metadata, and a fingerprint of what determines the run. It is written whole
and removed when the artefact is there. A run that finds the checkpoint of another run, or a
damaged one, says so and starts anew.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as deserialised
from safetensors.torch import save
from torch import Tensor

from spg_pipe.artefacts.files import clear_leftovers, write_bytes

_KIND = "spg-pipe checkpoint 2"
_DIGEST_BYTES = 32
SECONDS = 60.0
"""Between two checkpoints of a run, unless writing one takes more than a twentieth of that."""

_COST_SHARE = 20

State = dict[str, Any]
"""Of a run, beside its tensors: what JSON holds."""
Saved = tuple["dict[str, Tensor]", State]
"""Tensors by name, on the CPU, and the state."""


def checkpoint_path(artefact: Path) -> Path:
    """The hidden sibling of an artefact where its run keeps a checkpoint."""
    return artefact.with_name(f".{artefact.name}.checkpoint")


def machine(device: str) -> dict[str, str]:
    """What may change the last bits of a run beside its inputs and settings, in words."""
    if device.startswith("cuda"):
        return {"GPU": torch.cuda.get_device_name(device), "torch": torch.__version__}
    return {
        "device": device,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }


def below(tensors: "dict[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _write(path: Path, fingerprint: str, tensors: "dict[str, Tensor]", state: str) -> None:
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = save(ready, {"kind": _KIND, "fingerprint": fingerprint, "state": state})
    # Safetensors alone would not notice a flipped bit.
    write_bytes(path, hashlib.sha256(content).digest(), content)


def _read(path: Path) -> tuple[str, "dict[str, Tensor]", State]:
    """Fingerprint, tensors and state of a whole checkpoint; a ValueError if it is not one."""
    written = path.read_bytes()
    digest, content = written[:_DIGEST_BYTES], written[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its content is damaged")
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header["__metadata__"]
    if metadata["kind"] != _KIND:
        raise ValueError(f"its kind is {metadata['kind']!r}, not {_KIND!r}")
    return metadata["fingerprint"], deserialised(content), json.loads(metadata["state"])


@dataclass
class Checkpoints:
    """Where and how often a run keeps checkpoints."""

    path: Path
    device: str = "cpu"
    seconds: float = SECONDS
    """At least; 0: at every opportunity."""
    say: Callable[[str], None] = lambda message: None
    _last: float = field(default_factory=time.monotonic)
    _cost: float = 0.0

    def due(self) -> bool:
        """Whether it is time for the next one. Cheap: ask after every step.

        Large states wait longer, so that writing them takes no more than a twentieth of the run.
        """
        wait = max(self.seconds, _COST_SHARE * self._cost) if self.seconds else 0.0
        return time.monotonic() - self._last >= wait

    def load(self, fingerprint: str) -> Saved | None:
        """Tensors, on the CPU, and state of the checkpoint of this very run; None without one.

        `say` is told in a sentence why a checkpoint that is there is of no use.
        """
        clear_leftovers(self.path)
        try:
            written_for, tensors, state = _read(self.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.say(f"The checkpoint {self.path} cannot be used ({error}); training starts anew.")
            return None
        if written_for != fingerprint:
            self.say(
                f"The checkpoint {self.path} is of a run with other inputs or parameters: the "
                "data, the recipe or the options changed since it was written; training starts "
                "anew."
            )
            return None
        self.say(f"Going on from the checkpoint {self.path}.{self._differences(state['machine'])}")
        return tensors, state["run"]

    def _differences(self, before: dict[str, str]) -> str:
        """A sentence on another machine, where going on beats the last bits of hours of work."""
        now = machine(self.device)
        names = [name for name in before | now if before.get(name) != now.get(name)]
        if not names:
            return ""
        found = ", ".join(f"{n} {before.get(n, 'none')} → {now.get(n, 'none')}" for n in names)
        return f" Written elsewhere ({found}): the last bits may differ from an unbroken run."

    def save(self, fingerprint: str, tensors: "dict[str, Tensor]", state: State) -> None:
        """Write a checkpoint atomically; one that is there is replaced.

        A full disk costs the checkpoint, not the run. `fingerprint` is of everything that
        determines the run; floats of `state` come back to the bit, NaN and infinities too.
        """
        start = time.monotonic()
        try:
            content = {"machine": machine(self.device), "run": state}
            _write(self.path, fingerprint, tensors, json.dumps(content))
        except OSError as error:
            self.say(f"The checkpoint {self.path} could not be written ({error}).")
        self._last = time.monotonic()
        self._cost = self._last - start

    def remove(self) -> None:
        """Remove the checkpoint if there is one: its artefact is in its place."""
        self.path.unlink(missing_ok=True)

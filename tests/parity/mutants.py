"""Change one constant or rule of the code at a time and see whether parity notices.

python tests/parity/mutants.py prints a line a mutant: its name and `caught` or `SURVIVED`. The
package is copied, changed and imported anew in this process, which must not hold it already.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent.parent
PACKAGE = TESTS.parent / "spg_pipe"


class Mutant(NamedTuple):
    """One edit of the package's text and the kind of case that must notice it."""

    kind: str
    file: str
    old: str
    new: str


_BY_FILE: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("guide", "guides/model.py"): {
        "τ = 0.08": ("TAU = 0.07", "TAU = 0.08"),
        "aligned corners": ("align_corners=False", "align_corners=True"),
    },
    ("guide", "decision/maps.py"): {
        "σ = 5": ("SIGMA = 4.0", "SIGMA = 5.0"),
        "blur's kernel": ("_TRUNCATE = 4.0", "_TRUNCATE = 3.0"),
        "blur's border": ('mode="reflect"', 'mode="nearest"'),
    },
    ("guide", "guides/trained/trainer.py"): {
        "sparsity 2e-3": ("sparsity: float = 1e-3", "sparsity: float = 2e-3"),
        "guides' lr": ("= 1e-2", "= 2e-2"),
        "EMA decay": ("= 0.999", "= 0.99"),
    },
    ("guide", "recipe/protocol.py"): {
        "EMA warm-up in spg": ('"spg", "steps", True, False', '"spg", "steps", True, True'),
    },
    ("guide", "recipe/params.py"): {
        "image score": ('ImageScore = "max"', 'ImageScore = "cls"'),
    },
    ("guide", "decision/rules.py"): {
        "top share": ("= 0.1\n", "= 0.2\n"),
        "log-mean-exp τ": ("= 1.0\n", "= 2.0\n"),
        "α of the mix": ("= 0.5\n", "= 0.6\n"),
    },
    ("guide", "guides/trained/losses.py"): {
        "focal smoothing": ("_FOCAL_SMOOTH = 1e-5", "_FOCAL_SMOOTH = 1e-4"),
        "dice smoothing": ("_DICE_SMOOTH = 1.0", "_DICE_SMOOTH = 0.0"),
    },
    ("sae", "sae/trainer.py"): {
        "Adam's betas": ("(0.5, 0.999)", "(0.9, 0.999)"),
        "SAE's lr": ("lr: float = 1e-3", "lr: float = 2e-3"),
        "AuxK coefficient": ("= 1 / 32", "= 1 / 16"),
        "AuxK without stop-gradient": ("x - x_hat.detach()", "x - x_hat"),
        "activity threshold": ("ACTIVE_ABOVE = 1e-3", "ACTIVE_ABOVE = 1e-2"),
        "dead one step early": ("self.age > limit", "self.age >= limit"),
        "no renormalisation": ("self.sae.renormalise()", "pass"),
    },
    ("preprocess", "backbones/timm_models.py"): {
        "DINOv3 resized in 8 bits": ('size, "float",', 'size, "uint8",'),
        "DINOv3 bicubic": ('"float", "bilinear"', '"float", "bicubic"'),
    },
    ("preprocess", "backbones/openclip.py"): {
        "CLIP resized as floats": ('size, "uint8",', 'size, "float",'),
        "CLIP bilinear": ('"uint8", "bicubic"', '"uint8", "bilinear"'),
    },
    ("preprocess", "images/preprocess.py"): {
        "masks' filter": ("Resampling.BILINEAR", "Resampling.BOX"),
        "masks' threshold": ("> 127", "> 0"),
    },
    ("clip", "backbones/openclip.py"): {
        "CLIP without projection": ("joined @ tower.proj if", "joined if"),
        "CLIP before the last norm": ('= spec.norm == "post"', "= False"),
        "position embedding's filter": ('else "bilinear",', 'else "bicubic",'),
    },
    ("metrics", "metrics/published.py"): {
        "PRO's thresholds": ("STEPS = 200", "STEPS = 100"),
        "PRO's FPR": ("MAX_FPR = 0.3", "MAX_FPR = 0.2"),
        "F1's threshold": ("return max(lower, default=", "return max([], default="),
    },
    ("metrics", "metrics/regions.py"): {
        "4-connected regions": ("structure=np.ones((3, 3), dtype=bool)", "structure=None"),
    },
}
"""Kind and file → name → the text that is changed, and what to."""
MUTANTS = {
    name: Mutant(kind, file, old, new)
    for (kind, file), edits in _BY_FILE.items()
    for name, (old, new) in edits.items()
}


def survivors(names: list[str]) -> list[str]:
    """Names of the mutants that parity does not notice; "" where the unchanged code fails."""
    sys.dont_write_bytecode = True  # or a mutant's could be taken for the original's
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(PACKAGE, Path(folder) / "spg_pipe"))
        sys.path[:0] = [folder, str(TESTS)]
        kinds = {MUTANTS[name].kind for name in names}
        alive = [] if all(_all_ok(kind, copy) for kind in sorted(kinds)) else [""]
        return alive + [name for name in names if _survives(MUTANTS[name], copy)]


def _survives(mutant: Mutant, copy: Path) -> bool:
    path = copy / mutant.file
    text = path.read_text()
    if mutant.old not in text:
        raise SystemExit(f"{mutant.file} no longer has {mutant.old!r}: adapt the mutant")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        return _all_ok(mutant.kind, copy)
    finally:
        path.write_text(text)


def _all_ok(kind: str, package: Path) -> bool:
    for name in [n for n in sys.modules if n.split(".")[0] in ("spg_pipe", "parity")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    cases = importlib.import_module("parity.cases")
    compare_case = importlib.import_module(f"parity.{kind}_case").compare_case
    if Path(str(sys.modules["spg_pipe"].__file__)).parent != package:
        raise SystemExit("the changed copy was not the one that was imported")
    case = next(iter(cases.cases(kind, cases.OWN_CASES)))
    return all(comparison.ok for comparison in compare_case(case))


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(MUTANTS)
    left = survivors(chosen)
    for one in chosen:
        print(f"{one}: {'SURVIVED' if one in left else 'caught'}")
    if "" in left:
        print("the unchanged code does not agree with the reference")
    sys.exit(1 if left else 0)

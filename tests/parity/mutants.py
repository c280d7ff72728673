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


MUTANTS = {
    "τ = 0.08": Mutant("guide", "guides/model.py", "TAU = 0.07", "TAU = 0.08"),
    "σ = 5": Mutant("guide", "decision/maps.py", "SIGMA = 4.0", "SIGMA = 5.0"),
    "sparsity 2e-3": Mutant(
        "guide",
        "guides/trained/trainer.py",
        "sparsity: float = 1e-3",
        "sparsity: float = 2e-3",
    ),
    "guides' lr": Mutant("guide", "guides/trained/trainer.py", "= 1e-2", "= 2e-2"),
    "EMA decay": Mutant("guide", "guides/trained/trainer.py", "= 0.999", "= 0.99"),
    "EMA warm-up in spg": Mutant(
        "guide", "recipe/protocol.py", '"spg", "steps", True, False', '"spg", "steps", True, True'
    ),
    "image score": Mutant("guide", "recipe/params.py", 'ImageScore = "max"', 'ImageScore = "cls"'),
    "top share": Mutant("guide", "decision/rules.py", "= 0.1\n", "= 0.2\n"),
    "log-mean-exp τ": Mutant("guide", "decision/rules.py", "= 1.0\n", "= 2.0\n"),
    "α of the mix": Mutant("guide", "decision/rules.py", "= 0.5\n", "= 0.6\n"),
    "blur's kernel": Mutant("guide", "decision/maps.py", "_TRUNCATE = 4.0", "_TRUNCATE = 3.0"),
    "blur's border": Mutant("guide", "decision/maps.py", 'mode="reflect"', 'mode="nearest"'),
    "focal smoothing": Mutant(
        "guide", "guides/trained/losses.py", "_FOCAL_SMOOTH = 1e-5", "_FOCAL_SMOOTH = 1e-4"
    ),
    "dice smoothing": Mutant(
        "guide", "guides/trained/losses.py", "_DICE_SMOOTH = 1.0", "_DICE_SMOOTH = 0.0"
    ),
    "aligned corners": Mutant(
        "guide", "guides/model.py", "align_corners=False", "align_corners=True"
    ),
    "Adam's betas": Mutant("sae", "sae/trainer.py", "(0.5, 0.999)", "(0.9, 0.999)"),
    "SAE's lr": Mutant("sae", "sae/trainer.py", "lr: float = 1e-3", "lr: float = 2e-3"),
    "AuxK coefficient": Mutant("sae", "sae/trainer.py", "= 1 / 32", "= 1 / 16"),
    "AuxK without stop-gradient": Mutant(
        "sae", "sae/trainer.py", "x - x_hat.detach()", "x - x_hat"
    ),
    "activity threshold": Mutant(
        "sae", "sae/trainer.py", "ACTIVE_ABOVE = 1e-3", "ACTIVE_ABOVE = 1e-2"
    ),
    "dead one step early": Mutant("sae", "sae/trainer.py", "self.age > limit", "self.age >= limit"),
    "no renormalisation": Mutant("sae", "sae/trainer.py", "self.sae.renormalise()", "pass"),
    "DINOv3 resized in 8 bits": Mutant(
        "preprocess", "backbones/timm_models.py", 'size, "float",', 'size, "uint8",'
    ),
    "DINOv3 bicubic": Mutant(
        "preprocess", "backbones/timm_models.py", '"float", "bilinear"', '"float", "bicubic"'
    ),
    "CLIP resized as floats": Mutant(
        "preprocess", "backbones/openclip.py", 'size, "uint8",', 'size, "float",'
    ),
    "CLIP bilinear": Mutant(
        "preprocess", "backbones/openclip.py", '"uint8", "bicubic"', '"uint8", "bilinear"'
    ),
    "masks' filter": Mutant(
        "preprocess", "datasets/images.py", "Resampling.BILINEAR", "Resampling.BOX"
    ),
    "masks' threshold": Mutant("preprocess", "datasets/images.py", "> 127", "> 0"),
    "CLIP without projection": Mutant(
        "clip", "backbones/openclip.py", "joined @ tower.proj if", "joined if"
    ),
    "CLIP before the last norm": Mutant(
        "clip", "backbones/openclip.py", '= spec.norm == "post"', "= False"
    ),
    "position embedding's filter": Mutant(
        "clip", "backbones/openclip.py", 'else "bilinear",', 'else "bicubic",'
    ),
    "PRO's thresholds": Mutant("metrics", "metrics/spg.py", "STEPS = 200", "STEPS = 100"),
    "PRO's FPR": Mutant("metrics", "metrics/spg.py", "MAX_FPR = 0.3", "MAX_FPR = 0.2"),
    "4-connected regions": Mutant(
        "metrics", "metrics/regions.py", "structure=np.ones((3, 3), dtype=bool)", "structure=None"
    ),
    "F1's threshold": Mutant(
        "metrics", "metrics/spg.py", "return max(lower, default=", "return max([], default="
    ),
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

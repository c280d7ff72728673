"""How a script in stages/ is called: `python stages/NAME.py --dataset visa --seed 111`."""

import argparse
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spg_pipe.pipeline.console import Console, exit_code
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import DEFAULT_PARAMS, load_params


def run_stage(main: Callable[..., Any]) -> None:
    """Parse what `main` takes after its run, call it on params.yaml, exit with its code.

    Parameters
    ----------
    main : callable (RecipeRun, ...)
        Its further parameters become options of the same name and type.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--params", type=Path, default=DEFAULT_PARAMS)
    names = list(inspect.signature(main).parameters.values())[1:]
    for parameter in names:
        parser.add_argument(f"--{parameter.name}", type=parameter.annotation, required=True)
    options = vars(parser.parse_args())
    path = options.pop("params")
    sys.exit(exit_code(lambda: main(RecipeRun(load_params(path), Console()), **options)))

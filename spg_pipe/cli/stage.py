"""How a script in stages/ is called: by DVC, or `python stages/NAME.py --dataset visa`."""

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spg_pipe.pipeline.console import Console, exit_code
from spg_pipe.pipeline.datasets import require_in_project
from spg_pipe.pipeline.run import CLUSTER, RecipeRun
from spg_pipe.recipe.machine import local_workers
from spg_pipe.recipe.params import DEFAULT_PARAMS, load_params
from spg_pipe.recipe.paths import row_of


def run_stage(main: Callable[..., Any]) -> None:
    """Parse what `main` takes after its run, call it on params.yaml, exit with its code.

    A shell runs DVC's commands before anything here has seen the recipe. So they hold none of its
    text, and DVC says in the environment which stage it is.

    Parameters
    ----------
    main : callable (RecipeRun, ...)
        Its further parameters become options of the same name and type, which are needed outside
        of DVC.
    """
    stage = os.environ.get("DVC_STAGE", "")
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--params", type=Path, default=DEFAULT_PARAMS)
    names = list(inspect.signature(main).parameters.values())[1:]
    for parameter in names:
        parser.add_argument(f"--{parameter.name}", type=parameter.annotation, required=not stage)
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}

    def call() -> None:
        params = load_params(given.pop("params"))
        if stage:  # `dvc repro --single-item` runs a stage without the stage `recipe`
            require_in_project(params)
        row = row_of(params, stage) if len(given) < len(names) else {}
        cluster = os.environ.get(CLUSTER) or None
        local_workers(cluster)
        main(RecipeRun(params, Console(), cluster=cluster), **(row | given))

    sys.exit(exit_code(call))

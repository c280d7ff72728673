"""Stage `recipe`: Check params.yaml before any other stage."""

from pathlib import Path

from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline.datasets import require_in_project
from spg_pipe.pipeline.run import RecipeRun

CHECKED = Path("artifacts/.recipe-is-valid")
"""What every other stage depends on: a fixed place, wherever the recipe has its artefacts. Its
content changes with `RESULTS` alone."""
RESULTS = Path(__file__).with_name("results.yaml")


def main(run: RecipeRun) -> None:
    """Check params.yaml before any other stage."""
    require_in_project(run.params)
    CHECKED.parent.mkdir(exist_ok=True)
    CHECKED.write_text(f"params.yaml is a valid recipe\n{RESULTS.read_text()}")


if __name__ == "__main__":
    run_stage(main)

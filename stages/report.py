"""Stage `report`: Metrics and Scores → static HTML."""

from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline import targets
from spg_pipe.pipeline.run import RecipeRun


def main(run: RecipeRun) -> None:
    """Metrics and Scores → static HTML."""
    targets.report(run, tracked=True)


if __name__ == "__main__":
    run_stage(main)

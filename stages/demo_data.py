"""Stage `demo_data`: Write a built-in demo set."""

from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline import features
from spg_pipe.pipeline.run import RecipeRun


def main(run: RecipeRun, dataset: str) -> None:
    """Write a built-in demo set."""
    features.write_demo_sets(run, dataset)


if __name__ == "__main__":
    run_stage(main)

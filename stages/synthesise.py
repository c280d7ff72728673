"""Stage `synthesise`: Normal images → a set with painted defects and their masks."""

from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline import synthetic
from spg_pipe.pipeline.run import RecipeRun


def main(run: RecipeRun, dataset: str) -> None:
    """Normal images → a set with painted defects and their masks."""
    synthetic.synthesise_sets(run, name=dataset)


if __name__ == "__main__":
    run_stage(main)

"""Stage `prepare`: Raw folder → Manifest."""

from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline import features
from spg_pipe.pipeline.run import RecipeRun


def main(run: RecipeRun, dataset: str) -> None:
    """Raw folder → Manifest."""
    features.prepare(run, run.params.dataset(dataset), tracked=True)


if __name__ == "__main__":
    run_stage(main)

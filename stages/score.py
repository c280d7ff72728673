"""Stage `score`: Detector + FeatureStore → Scores."""

from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline import targets
from spg_pipe.pipeline.run import RecipeRun


def main(run: RecipeRun, aux: str, target: str, seed: int) -> None:
    """Detector + FeatureStore → Scores."""
    targets.score(run.narrowed(aux, seed), target)


if __name__ == "__main__":
    run_stage(main)

"""Stage `extract`: Manifest → FeatureStore."""

from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline import features
from spg_pipe.pipeline.run import RecipeRun


def main(run: RecipeRun, dataset: str) -> None:
    """Manifest → FeatureStore."""
    features.extract(run, run.params.dataset(dataset), replace=True, from_manifest=True)


if __name__ == "__main__":
    run_stage(main)

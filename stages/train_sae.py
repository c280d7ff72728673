"""Stage `train_sae`: FeatureStore → SparseAutoencoder."""

from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline import training
from spg_pipe.pipeline.run import RecipeRun


def main(run: RecipeRun, aux: str, seed: int) -> None:
    """FeatureStore → SparseAutoencoder."""
    training.train_sae(run, aux, seed)


if __name__ == "__main__":
    run_stage(main)

"""Stage `train_sae`: FeatureStore → SparseAutoencoder."""

from spg_pipe import pipeline
from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline.run import Session


def main(session: Session, aux: str, seed: int) -> None:
    """FeatureStore → SparseAutoencoder."""
    pipeline.train_sae(session, aux, seed)


if __name__ == "__main__":
    run_stage(main)

"""Stage `train_sae`: FeatureStore → SparseAutoencoder."""

from spg_pipe import pipeline
from spg_pipe.session import Session
from spg_pipe.stage import run_stage


def main(session: Session, aux: str, seed: int) -> None:
    """FeatureStore → SparseAutoencoder."""
    pipeline.train_sae(session, aux, seed)


if __name__ == "__main__":
    run_stage(main)

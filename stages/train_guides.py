"""Stage `train_guides`: FeatureStore + SparseAutoencoder → Detector."""

from spg_pipe import pipeline
from spg_pipe.session import Session
from spg_pipe.stage import run_stage


def main(session: Session, aux: str, seed: int) -> None:
    """FeatureStore + SparseAutoencoder → Detector."""
    pipeline.train_guides(session, aux, seed)


if __name__ == "__main__":
    run_stage(main)

"""Stage `score`: Detector + FeatureStore → Scores."""

from spg_pipe import pipeline
from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline.run import Session


def main(session: Session, aux: str, target: str, seed: int) -> None:
    """Detector + FeatureStore → Scores."""
    pipeline.score(session, target, aux=aux, seed=seed)


if __name__ == "__main__":
    run_stage(main)

"""Stage `report`: Metrics and Scores → static HTML."""

from spg_pipe import pipeline
from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline.run import Session


def main(session: Session) -> None:
    """Metrics and Scores → static HTML."""
    pipeline.report(session)


if __name__ == "__main__":
    run_stage(main)

"""Stage `demo_data`: Write a built-in demo set."""

from spg_pipe import pipeline
from spg_pipe.session import Session
from spg_pipe.stage import run_stage


def main(session: Session, dataset: str) -> None:
    """Write a built-in demo set."""
    pipeline.write_demo_set(session.params, dataset)


if __name__ == "__main__":
    run_stage(main)

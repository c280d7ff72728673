"""Stage `prepare`: Raw folder → Manifest."""

from spg_pipe import pipeline
from spg_pipe.session import Session
from spg_pipe.stage import run_stage


def main(session: Session, dataset: str) -> None:
    """Raw folder → Manifest."""
    pipeline.prepare(session, session.params.dataset(dataset))


if __name__ == "__main__":
    run_stage(main)

"""Stage `synthesise`: Normal images → a set with painted defects and their masks."""

from spg_pipe import pipeline
from spg_pipe.session import Session
from spg_pipe.stage import run_stage


def main(session: Session, dataset: str) -> None:
    """Normal images → a set with painted defects and their masks."""
    pipeline.synthesise_set(session, dataset)


if __name__ == "__main__":
    run_stage(main)

"""Stage `recipe`: Check params.yaml and write its sections, before any other stage."""

from pathlib import Path

from spg_pipe.cli.stage import run_stage
from spg_pipe.pipeline.project import write_sections
from spg_pipe.pipeline.run import RecipeRun


def main(run: RecipeRun) -> None:
    """Check params.yaml and write its sections, before any other stage."""
    write_sections(run.params, Path(__file__).with_name("results.yaml"))


if __name__ == "__main__":
    run_stage(main)

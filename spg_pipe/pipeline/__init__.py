"""One function a stage: the commands and the scripts in stages/ only parse and call these.

Every function takes a RecipeRun, works in the recipe's paths (recipe/paths.py) and returns the path
of the artefact that it wrote.
"""

from spg_pipe.pipeline.features import (
    extract,
    load_backbone,
    prepare,
    skipped_in,
    with_tiles,
    write_demo_sets,
)
from spg_pipe.pipeline.synthetic import synthesise, synthesise_sets
from spg_pipe.pipeline.target import evaluate, read_metrics, report, score, tables_of
from spg_pipe.pipeline.training import train_guides, train_guides_together, train_sae

__all__ = [
    "evaluate",
    "extract",
    "load_backbone",
    "prepare",
    "read_metrics",
    "report",
    "score",
    "skipped_in",
    "synthesise",
    "synthesise_sets",
    "tables_of",
    "train_guides",
    "train_guides_together",
    "train_sae",
    "with_tiles",
    "write_demo_sets",
]

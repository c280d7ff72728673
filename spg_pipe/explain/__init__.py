"""Why: the atoms behind a decision, and what each atom is."""

from spg_pipe.explain.explanation import Explanation as Explanation
from spg_pipe.explain.explanation import explain as explain

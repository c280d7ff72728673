"""A researcher's questions: compare, choose, sweep, and baselines."""

from spg_pipe.study.choices import Choice, choose
from spg_pipe.study.comparison import Comparison, compare
from spg_pipe.study.sweeps import SweepResult, sweep

__all__ = ["Choice", "Comparison", "SweepResult", "choose", "compare", "sweep"]

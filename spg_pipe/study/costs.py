"""What was trained for a comparison, and what that cost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from spg_pipe.artefacts.record import Record, read_record
from spg_pipe.detector.record import DetectorOrigin
from spg_pipe.errors import DamagedError
from spg_pipe.pipeline.costs import Cost


def one_after_another(costs: Sequence[Cost]) -> Cost:
    """Of work in processes of its own: all time, the largest memory; NaN if a part is."""
    largest = float(np.max([cost.mebibytes for cost in costs]))  # NaN if there is one
    return Cost(sum(cost.seconds for cost in costs), largest)


class MakingCosts(Record):
    """compare/<name>-costs.json: what was trained for a comparison, and what that cost."""

    costs: dict[str, Cost] = Field(default_factory=dict)
    """Fingerprint of an SAE or a detector → its cost."""

    @classmethod
    def load(cls, path: Path) -> "MakingCosts":
        """A damaged table is as if it were not there."""
        try:
            return (
                cls()
                if not path.exists()
                else read_record(path, cls, "table of costs", "spg-pipe compare")
            )
        except DamagedError:
            return cls()

    def of(self, detector: DetectorOrigin | None, beside: Cost) -> Cost:
        """Making a detector and its SAE, and what is made beside them; NaN if one of them was made
        elsewhere, unmeasured."""
        made = [detector.fingerprint] if detector else []
        if detector and detector.sae.params:  # axes are not made
            made.append(detector.sae.fingerprint)
        return one_after_another([*(self.costs.get(key, Cost()) for key in made), beside])

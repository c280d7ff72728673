"""What needs no other image: how unlike its own image a patch is."""

import numpy as np
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.guides.model import unit
from spg_pipe.study.baselines.patchwise import Method


def dissimilarity() -> Method:
    """1 − x·m of unit patch tokens x, m their mean: the decision's component alone."""

    def values(tokens: dict[TokenKey, Tensor], _rows: np.ndarray) -> dict[TokenKey, Tensor]:
        found = {}
        for key, batch in tokens.items():
            patches = unit(batch[:, 1:])
            found[key] = 1 - (patches @ patches.mean(dim=1)[:, :, None])[..., 0]
        return found

    return Method("intra-image dissimilarity", "nothing", values)

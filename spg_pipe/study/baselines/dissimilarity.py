"""What needs no other image: how unlike its own image a patch is."""

import numpy as np
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.guides.model import unit
from spg_pipe.study.baselines.patchwise import Baseline


def dissimilarity() -> Baseline:
    """1 − x·m of unit patch tokens x, m their mean: the decision's component alone."""

    def values(_key: TokenKey, tokens: Tensor, _rows: np.ndarray) -> Tensor:
        patches = unit(tokens[:, 1:])
        return 1 - (patches @ patches.mean(dim=1)[:, :, None])[..., 0]

    return Baseline("intra-image dissimilarity", "nothing", values)

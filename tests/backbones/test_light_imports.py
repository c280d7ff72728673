"""Starting does not wait for what only torch.compile needs, and nothing is broken by it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from spg_pipe.backbones import load_backbone
load_backbone("efficientnet-lite0", image_size=64)
assert not {"torch._dynamo", "torch._dynamo.utils"} & set(sys.modules)
import torch, torchvision
boxes = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
print(torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), boxes, 1).item())
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


def test_timm_is_imported_without_dynamo_which_is_there_when_it_is_needed():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1.0", "2.0"], done.stderr

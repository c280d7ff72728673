"""Frozen backbones: an image batch in, per-layer patch tokens and a prefix token out.

Importing this package loads neither torch nor timm; `load_backbone` does.
"""

from spg_pipe.backbones.load import load_backbone
from spg_pipe.backbones.names import BackboneInfo, list_backbones
from spg_pipe.backbones.spec import BackboneSpec

__all__ = ["BackboneInfo", "BackboneSpec", "list_backbones", "load_backbone"]

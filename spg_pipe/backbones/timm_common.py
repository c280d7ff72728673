"""What timm's ViTs and CNNs share: resolving a name, building a model, loading it strictly."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, is_model_in_modules
from torch import nn

from spg_pipe.backbones.load import Request
from spg_pipe.backbones.names import BackboneInfo, unknown_name
from spg_pipe.backbones.weights import StateDict, Weights, load_strictly, weights_for
from spg_pipe.datasets.images import Preprocess
from spg_pipe.errors import SpgError

# Plain ViTs: one grid, a list of blocks, an optional class token. Everything else in timm is
# treated as a pyramid of grids.
VIT_MODULES = ("vision_transformer", "eva", "deit", "beit")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def resolve_timm(name: str) -> BackboneInfo:
    """Describe any timm model by its name (with or without a tag).

    Raises SpgError if timm has no such architecture, or not the tag.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown_name(name, timm.list_models())
    cfg = _pretrained_cfg(name)
    licence = cfg.license or "not stated; see the model's page"
    vit = is_model_in_modules(architecture, VIT_MODULES)
    return BackboneInfo(
        alias=name,
        family="timm-vit" if vit else "timm-cnn",
        model=name,
        licence=licence,
        gated="dinov3" in licence,
        image_size=int(cfg.input_size[-1]),
        norm="post" if vit else "pre",
        note="a timm model",
    )


def skeleton(info: BackboneInfo, **options: Any) -> Any:
    """Build the model without memory for its weights, to check settings before any download."""
    try:
        with torch.device("meta"):
            return timm.create_model(info.model, pretrained=False, num_classes=0, **options)
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        raise SpgError(
            f"timm {timm.__version__} cannot build {info.model} as a backbone: {error}. "
            "`spg-pipe backbones` lists those that are known to work."
        ) from error


def load_model(request: Request, **options: Any) -> tuple[Any, Weights]:
    """Build a timm model without classifier, in evaluation mode, with its weights.

    `options` go to `timm.create_model`. Raises SpgError if weights cannot be had, or do not fit.
    """
    name = request.info.model
    cfg = _pretrained_cfg(name)
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_FILES
    weights = weights_for(request, cfg.hf_hub_id, files, cfg.url)
    model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    state = _to_timm_names(weights, model, name)
    classifiers = cfg.classifier or ()
    names = (classifiers,) if isinstance(classifiers, str) else classifiers
    load_strictly(model, state, weights.label, drop=[f"{each}." for each in names])
    return model.eval().requires_grad_(False).to(request.device), weights


def preprocess_for(model: str, size: int) -> Preprocess:
    """Return the published preprocessing of a timm model at `size` pixels (docs/method.md §1).

    DINOv3 resizes floats bilinearly; the others, DINOv2 among them, were published with Pillow
    on 8-bit images, and name their filter, mean and deviation in timm.
    """
    cfg = _pretrained_cfg(model)
    mean, std = tuple(cfg.mean), tuple(cfg.std)
    if "dinov3" in model:
        return Preprocess(size, "float", "bilinear", mean, std)
    bilinear = cfg.interpolation == "bilinear"
    return Preprocess(size, "uint8", "bilinear" if bilinear else "bicubic", mean, std)


def fixed_size(model: str) -> int | None:
    """Return the only image size (pixels) that a timm model takes, None if it takes any."""
    cfg = _pretrained_cfg(model)
    return int(cfg.input_size[-1]) if cfg.fixed_input_size else None


def _pretrained_cfg(name: str) -> Any:
    """What timm says of a model's weights; its defaults where it says nothing."""
    try:
        return timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise SpgError(
            f"timm has no weights named {name}. For {architecture} it has: {tags}."
        ) from error


def _to_timm_names(weights: Weights, model: nn.Module, name: str) -> StateDict:
    """Rename the authors' original naming to timm's with timm's own filter, if it has one."""
    _refuse_silent_changes(weights, model)
    module = sys.modules[type(model).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return weights.state
    try:
        # timm prints each bias that it leaves out of DINOv3's original files.
        with contextlib.redirect_stdout(io.StringIO()):
            return convert(dict(weights.state), model)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise SpgError(
            f"The weights ({weights.label}) are not a state dict of {name}: {error!r}. "
            "Expected timm's names or the authors' original .pth."
        ) from error


def _refuse_silent_changes(weights: Weights, model: nn.Module) -> None:
    """Refuse what timm's filter would quietly resample or drop, giving other tokens."""
    own = dict(model.named_parameters())
    key = "patch_embed.proj.weight"
    # OpenCLIP nests a timm tower, SigLIP's for one, under `visual.trunk`.
    nested = f"visual.trunk.{key}"
    given, ours = weights.state.get(key, weights.state.get(nested)), own.get(key)
    if given is not None and ours is not None and given.ndim == 4 and given.shape != ours.shape:
        raise SpgError(
            f"The weights ({weights.label}) are of another model: {key} is {tuple(given.shape)}, "
            f"expected {tuple(ours.shape)} (another patch size or width)."
        )
    biased = [k for k, v in weights.state.items() if k.endswith("qkv.bias") and v.any()]
    if "storage_tokens" in weights.state and biased and "blocks.0.attn.q_bias" not in own:
        raise SpgError(
            f"The weights ({weights.label}) have attention biases ({biased[0]}, …) that this model "
            "leaves out. Use timm's variant with biases: its name has `_qkvb` after `dinov3`."
        )

"""timm's models by their names: plain vision transformers by block, all others by stride."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, is_model_in_modules
from torch import Tensor, nn

from spg_pipe.backbones.base import LayerTokens, Network, blocks_of, stand_in
from spg_pipe.backbones.hub import weights_for
from spg_pipe.backbones.names import BackboneInfo, Request, unknown_name
from spg_pipe.backbones.spec import BackboneSpec, Norm, Prefix, check_image_size
from spg_pipe.backbones.weights import StateDict, Weights, load_strictly
from spg_pipe.errors import SpgError
from spg_pipe.images.preprocess import Preprocess

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


def build_timm_vit(request: Request) -> Network:
    """Build the backbone that `request` names (docs/method.md §1).

    Raises SpgError for a block that the model does not have, an image size that its patch size
    does not divide, ``norm: post`` where the tokens have no final norm, or weights that cannot be
    had or do not fit.
    """
    info = request.info
    # BEiT's relative positions are tables of one size: timm resizes them when it loads.
    is_beit = is_model_in_modules(info.model.partition(".")[0], ("beit",))
    options = {"img_size": request.image_size} if is_beit else {"dynamic_img_size": True}
    plan = skeleton(info, **options)
    patch_size = int(plan.patch_embed.patch_size[0])
    check_image_size(request.image_size, patch_size, info.alias)
    layers = request.blocks(len(plan.blocks))
    norm = _resolve_norm(request, has_norm=not isinstance(plan.norm, nn.Identity))
    stands_in: Prefix = "mean"
    if request.protocol == "spg" and "siglip" in info.model:
        stands_in = "zeros"  # the published code's
    # A prefix may be registers alone: then there is no class token among them.
    prefix = stands_in if getattr(plan, "cls_token", None) is None else "cls"
    model, spec = _load(
        request, options, layers=layers, norm=norm, patch_size=patch_size, prefix=prefix
    )
    if hasattr(model, "set_input_size"):
        # Positions are resized once and not for each image: the same bits, and an exported graph
        # needs no bicubic filter, which runtimes compute otherwise.
        model.set_input_size(img_size=(request.image_size, request.image_size))
    side = request.image_size // patch_size
    # Position embeddings are resized once, not in each pass: the same bits. An exported network has
    # none to resize, which OpenVINO would do without antialias.
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(request.image_size, request.image_size))

    def run(images: Tensor, blocks: list[int]) -> list[LayerTokens]:
        outputs = model.forward_intermediates(
            images,
            indices=blocks,
            return_prefix_tokens=model.num_prefix_tokens > 0,
            norm=norm == "post",
            output_fmt="NLC",
            stop_early=True,
            intermediates_only=True,
        )
        tokens = []
        for output in outputs:
            values, extra = output if isinstance(output, tuple) else (output, None)
            patches = values.contiguous().float()
            if extra is not None and spec.prefix == "cls":
                cls = extra[:, :1].contiguous().float()
            else:
                cls = stand_in(patches, spec.prefix)
            tokens.append(LayerTokens(patches, cls, (side, side)))
        return tokens

    return Network(spec, request.device, blocks_of(spec), run)


def _resolve_norm(request: Request, *, has_norm: bool) -> Norm:
    """Explicit, else the published code's for DINOv2 in protocol spg, else the model's own."""
    if request.norm == "post" and not has_norm:
        raise SpgError(
            f"{request.info.alias} normalises the pooled feature, not the tokens: use `norm: pre`."
        )
    if request.norm is not None:
        return request.norm
    if not has_norm or (request.protocol == "spg" and "dinov2" in request.info.model):
        return "pre"
    return request.info.norm


def build_timm_cnn(request: Request) -> Network:
    """Build the pyramid of grids that `request` names: each cell is a token.

    Raises SpgError for a layer that is no stride of the model, an image size that the strides do
    not divide, ``norm: post``, or weights that cannot be had or do not fit.
    """
    info = request.info
    if request.norm == "post":
        raise SpgError(
            f"{info.alias} gives feature grids, which have no final norm: use `norm: pre`."
        )
    strides = _strides(skeleton(info), info.alias)
    usual = tuple(layer for layer in ("s8", "s16") if layer in strides)
    layers = request.layers or usual or (list(strides)[-1],)
    unknown = [layer for layer in layers if layer not in strides]
    if unknown:
        raise SpgError(
            f"{info.alias} has no layer {unknown[0]!r}; its layers are named by stride: "
            f"{', '.join(strides)}."
        )
    largest = max(int(layer[1:]) for layer in layers)
    cfg = _pretrained_cfg(info.model)
    only = int(cfg.input_size[-1]) if cfg.fixed_input_size else None
    if only is not None and (only != request.image_size or only % largest):
        raise SpgError(
            f"{info.alias} works at {only} pixels only, and its largest stride, {largest}, must "
            f"divide them; found {request.image_size}."
        )
    check_image_size(request.image_size, largest, info.alias)
    model, spec = _load(request, {}, layers=layers, norm="pre", patch_size=largest, prefix="mean")
    # Channels last halves the time of a CNN on a CPU, and its grids are tokens as they lie.
    model = model.to(memory_format=torch.channels_last)
    names = {strides[layer]: layer for layer in layers}

    def run(images: Tensor, indices: list[int]) -> list[LayerTokens]:
        grids = model.forward_intermediates(
            images.contiguous(memory_format=torch.channels_last),
            indices=indices,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        pairs = zip(indices, grids, strict=True)
        return [_to_tokens(grid, names[index], spec) for index, grid in pairs]

    return Network(spec, request.device, {layer: strides[layer] for layer in layers}, run)


def _strides(plan: Any, name: str) -> dict[str, int]:
    """Layer name → timm's feature index; of several grids with one stride the last, deepest."""
    entries = getattr(plan, "feature_info", None)
    if not entries or not hasattr(plan, "forward_intermediates"):
        raise SpgError(f"{name} offers no intermediate feature grids: choose another timm model.")
    return {f"s{entry['reduction']}": index for index, entry in enumerate(entries)}


def _to_tokens(grid: Tensor, layer: str, spec: BackboneSpec) -> LayerTokens:
    h, w = int(grid.shape[2]), int(grid.shape[3])
    if h * int(layer[1:]) != spec.preprocess.size:
        raise SpgError(
            f"{spec.model} gives a grid of {h}×{w} for {layer} at {spec.preprocess.size} pixels: "
            "its features are not those of a stride, so this model cannot be used."
        )
    patches = grid.flatten(2).transpose(1, 2).contiguous().float()
    return LayerTokens(patches, stand_in(patches, spec.prefix), (h, w))


def skeleton(info: BackboneInfo, **options: Any) -> Any:
    """Build the model without memory for its weights, to check settings before any download."""
    try:
        with torch.device("meta"):
            return timm.create_model(info.model, pretrained=False, num_classes=0, **options)
    except Exception as error:  # models refuse settings in a dozen unrelated ways
        raise SpgError(
            f"timm {timm.__version__} cannot build {info.model} as a backbone: {error}. "
            "`spg-pipe backbones` lists those that are known to work."
        ) from error


def _load(
    request: Request, options: Mapping[str, Any], **resolved: Any
) -> tuple[Any, BackboneSpec]:
    """A timm model without classifier, in evaluation mode, with its weights, and what it is.

    `options` go to `timm.create_model`, what was `resolved` to the specification. Raises SpgError
    if weights cannot be had, or do not fit.
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
    preprocess = preprocess_for(name, request.image_size)
    spec = request.spec(weights, preprocess=preprocess, pos_embed="native", **resolved)
    return model.eval().requires_grad_(False).to(request.device), spec


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
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
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

"""Random weights of the published backbones, saved as a state dict for `--weights`."""

from pathlib import Path


def save_random_weights(recipe: str, path: Path) -> Path:
    """Write a seeded random state dict of the recipe's backbone; returns the path."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    if recipe == "paper-dinov3":
        import timm

        model = timm.create_model("vit_large_patch16_dinov3", pretrained=False)
    else:
        import open_clip

        model = open_clip.create_model("ViT-L-14-336-quickgelu", pretrained=None)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, path)
    return path

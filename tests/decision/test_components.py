"""Components are the formulas of docs/method.md §8, token by token."""

from __future__ import annotations

import numpy as np
import torch

from spg_pipe.decision.components import components


def tokens_of(seed: int, images: int = 3, patches: int = 20, dim: int = 7) -> torch.Tensor:
    return torch.randn(images, 1 + patches, dim, generator=torch.Generator().manual_seed(seed))


def test_components_are_their_formulas() -> None:
    tokens, sides = tokens_of(1), tokens_of(2, 3, 3)[:, :2]
    views = dict(zip(("patches", "cls", "mean_tokens"), sides, strict=True))
    found = components(tokens, views)
    for image in range(3):
        x = tokens[image].double().numpy()
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        mean = x[1:].mean(axis=0)
        for side in range(2):
            of = {view: rows[side].double().numpy() for view, rows in views.items()}
            local = [patch @ of["patches"] for patch in x[1:]]
            np.testing.assert_allclose(found.guides[image, side], local, atol=1e-5)
            assert abs(found.image["cls"][image, side] - x[0] @ of["cls"]) < 1e-5
            expected = mean @ of["mean_tokens"] / np.linalg.norm(mean)
            assert abs(found.image["mean_tokens"][image, side] - expected) < 1e-5
        unlike = [1 - patch @ mean for patch in x[1:]]
        np.testing.assert_allclose(found.dissimilarity[image], unlike, atol=1e-5)
        assert abs(found.image["dissimilarity"][image, 0] - np.mean(unlike)) < 1e-5


def test_each_image_is_judged_on_its_own() -> None:
    tokens, views = tokens_of(3), {"patches": tokens_of(4)[0, :1], "cls": tokens_of(5)[0, :1]}
    together, alone = components(tokens, views), components(tokens[1:2], views)
    torch.testing.assert_close(together.guides[1:2], alone.guides)
    torch.testing.assert_close(together.dissimilarity[1:2], alone.dissimilarity)
    assert list(together.image) == ["dissimilarity", "cls"]  # no guides, no mean_tokens


def test_an_image_of_one_colour_has_nothing_unlike() -> None:
    tokens = tokens_of(6, 1, 1).expand(1, 2, 7)[:, [0, *[1] * 9]]
    found = components(tokens, {"patches": torch.ones(1, 7)})
    np.testing.assert_allclose(found.dissimilarity, 0, atol=1e-6)

"""Checks of custom blocks in a small detector: pruned and compared, saved and read back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import Model, build_model, load_model, save_model
from prune_methods import ChannelGroup, Prunable, Skipped, run_preflight
from prune_methods.surgery.cut import largest_difference
from tests.prune_toys import randomised


def toy_model(rows: Sequence[Any], levels: Sequence[int], head: str = "Detect") -> Model:
    """Build a stem of stride 4 and 16 channels (rows 0, 1), `rows`, and a head on `levels`."""
    cfg = {
        "nc": 2,
        "activation": "nn.LeakyReLU(0.1)",
        "anchors": [[10, 13, 16, 30]] * len(levels),
        "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], *rows],
        "head": [[list(levels), 1, head, ["nc", "anchors"]]],
    }
    torch.manual_seed(0)
    model = build_model(cfg)
    randomised(model)
    return model


def thinned(groups: Sequence[ChannelGroup]) -> dict[str, np.ndarray]:
    """Return masks that drop about a third of each group, drawn from a generator of their own."""
    generator = np.random.default_rng(0)
    masks = {}
    for group in groups:
        keep = np.ones(group.size, dtype=bool)
        keep[generator.permutation(group.size)[: group.size // 3]] = False
        masks[group.name] = keep
    return masks


def check_cut(model: Model, tmp_path: Path) -> tuple[list[ChannelGroup], list[Skipped], Model]:
    """Prune a model and check the result.

    The pruned block must compute what the block with zeros computes, must train and fold, and must
    be the same after saving and loading.

    Returns:
        Groups and skipped layers of the model, and the pruned model.
    """
    groups, skipped = run_preflight(model)
    masks = thinned(groups)
    smaller = Prunable(model, groups).cut(masks)
    assert isinstance(smaller, Model)
    assert largest_difference(smaller, Prunable(model, groups).zero_channels(masks)) < 1e-4
    check_fuse(smaller)
    save_model(smaller, tmp_path / "pruned.pt")
    again = load_model(tmp_path / "pruned.pt").eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(smaller.eval()(x)[0], again(x)[0])
    check_gradients(smaller)
    return groups, skipped, smaller


def check_fuse(model: Model) -> None:
    """Check that the deployed model gives the outputs of the model."""
    assert largest_difference(model.fuse(), model) < 1e-4


def check_gradients(model: nn.Module, size: int = 64) -> None:
    """Check that the gradient of a training step is finite and reaches every parameter."""
    model.train().zero_grad()
    maps = model(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)))
    torch.stack([y.square().mean() for y in maps]).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not [n for n, g in gradients.items() if g is None or not torch.isfinite(g).all()]
    assert not [n for n, g in gradients.items() if g is not None and not g.any()]


def skipped_layers(skipped: Sequence[Skipped]) -> set[str]:
    """Return the names of the layers that stay whole, without the head's predictions."""
    return {s.layer for s in skipped if s.reason != "makes the output of the model"}

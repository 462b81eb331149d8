"""What the tests of every custom block ask: a small detector around it, cut and compared, saved and
read back.
"""

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
    """A stem of stride 4 with 16 channels (rows 0 and 1), then `rows`, then a head on
    the `levels`.
    """
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
    """A mask without about a third of each group, drawn from a generator of its own."""
    generator = np.random.default_rng(0)
    masks = {}
    for group in groups:
        keep = np.ones(group.size, dtype=bool)
        keep[generator.permutation(group.size)[: group.size // 3]] = False
        masks[group.name] = keep
    return masks


def check_cut(model: Model, tmp_path: Path) -> tuple[list[ChannelGroup], list[Skipped], Model]:
    """Pruned, the block computes what zeros would, trains, folds, and comes back from a checkpoint
    the same.
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
    """The deployed model gives what the model gives."""
    assert largest_difference(model.fuse(), model) < 1e-4


def check_gradients(model: nn.Module, size: int = 64) -> None:
    """A training step's gradient is finite and reaches every parameter."""
    model.train().zero_grad()
    maps = model(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)))
    torch.stack([y.square().mean() for y in maps]).sum().backward()
    missing = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert not missing
    silent = [
        name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()
    ]
    assert not silent


def skipped_layers(skipped: Sequence[Skipped]) -> set[str]:
    """Names of the layers that stay whole, but the head's predictions."""
    return {s.layer for s in skipped if s.reason != "makes the output of the model"}

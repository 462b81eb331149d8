"""Checks of blocks in a small detector."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import build_model, load_model, save_model
from models.yolo import Model
from prune_methods import Prunable, run_preflight
from prune_methods.surgery.cut import largest_difference
from tests.prune_toys import randomised


def small(*rows: list[Any]) -> dict[str, Any]:
    """Return a YAML with three convolutions, then the rows, then a head on the last row.

    Outputs 0, 1, 2 have strides 4, 8, 16 and 16, 24, 32 channels.
    """
    return {
        "nc": 2,
        "anchors": [[10, 13, 16, 30]],
        "backbone": [
            [-1, 1, "Conv", [16, 3, 4]],
            [-1, 1, "Conv", [24, 3, 2]],
            [-1, 1, "Conv", [32, 3, 2]],
            *rows,
        ],
        "head": [[-1, 1, "Conv", [24, 1, 1]], [[-1], 1, "Detect", ["nc", "anchors"]]],
    }


def built(*rows: list[Any]) -> Model:
    """Build the model of `small` with seeded weights and random statistics."""
    torch.manual_seed(0)
    model = build_model(small(*rows))
    randomised(model)
    return model


def without_gradient(model: Model, imgsz: int = 64) -> list[str]:
    """Return the names of the parameters that a training step does not reach."""
    images = torch.rand(2, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(1))
    maps: list[Tensor] = model.train()(images)
    sum(y.square().mean() for y in maps).backward()  # type: ignore[union-attr]
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def fused_difference(model: Model, imgsz: int = 64) -> float:
    """Return the largest difference of the deployed model, as a share of the largest output."""
    return largest_difference(model.fuse(), model, imgsz)


def assert_prunes(model: Model, folder: Path, imgsz: int = 64) -> tuple[Model, dict[str, str]]:
    """Prune half of every group and check the result.

    The pruned model must compute what the model with zeros computes, fold, and be the same after
    saving and loading.

    Returns:
        The pruned model, and the reason of each layer that stays whole.
    """
    found, skipped = run_preflight(model)
    rng = np.random.default_rng(0)
    masks = {g.name: rng.permutation(g.size) < (g.size + 1) // 2 for g in found}
    smaller = Prunable(model, found).cut(masks)
    assert isinstance(smaller, Model)
    assert largest_difference(smaller, Prunable(model, found).zero_channels(masks), imgsz) < 1e-4
    assert fused_difference(smaller, imgsz) < 1e-4
    save_model(smaller, folder / "pruned.pt")
    assert largest_difference(load_model(folder / "pruned.pt"), smaller, imgsz) == 0
    return smaller, {s.layer: s.reason for s in skipped}

"""DyHead: published size, its formulas, and a cut of whole norm groups."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.blocks.dyhead import DyBlock, DyHead, DyReLU, MovingNorm, ScaleGate
from tests.custom_toys import check_cut, check_fuse, check_gradients, skipped_layers, toy_model
from utils.errors import UserError

ROWS: list[Any] = [
    [-1, 1, "Conv", [32, 3, 2]],  # 2, stride 8
    [-1, 1, "Conv", [32, 3, 2]],  # 3, stride 16
    [2, 1, "Conv", [32, 1]],  # 4
    [[4, 3], 2, "DyHead", []],  # 5 and 6
]


def randomized(model: nn.Module) -> nn.Module:
    """Weights as after some training: new ones are nearly zero."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if any(isinstance(m, DyHead) and name.startswith(n) for n, m in model.named_modules() if n):
            p.data.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return model


def test_a_block_has_the_published_parameters() -> None:
    assert sum(p.numel() for p in DyBlock(128).parameters()) == 495_420


def test_dyrelu_is_the_larger_line() -> None:
    torch.manual_seed(0)
    block = DyReLU(8)
    for p in block.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 8, 4, 4)
    y = block(x)
    hidden = x.mean((2, 3)) @ block.squeeze.weight.flatten(1).T + block.squeeze.bias
    lines = []
    for convs, scale, start in (
        ((block.slope1, block.shift1), 2, 1),
        ((block.slope2, block.shift2), 2, 0),
    ):
        a, b = (
            ((hidden.clamp(min=0) @ c.weight.flatten(1).T + c.bias + 3) / 6).clamp(0, 1)[
                :, :, None, None
            ]
            - 0.5
            for c in convs
        )
        lines.append((scale * a + start) * x + b)
    assert torch.allclose(y, torch.where(lines[0] > lines[1], lines[0], lines[1]), atol=1e-5)


def test_the_average_of_the_neighbours_is_what_goes_into_dyrelu() -> None:
    torch.manual_seed(0)
    block = DyBlock(16)  # offsets are zero: plain convolutions of half the weight
    maps = [torch.randn(1, 16, s, s) for s in (8, 4, 2)]

    def part(moving: MovingNorm, x: torch.Tensor, s: int) -> torch.Tensor:
        return moving.norm(F.conv2d(x, moving.conv.weight / 2, stride=s, padding=1))

    gate = block.scale
    middle = [part(block.finer, maps[0], 2), part(block.own, maps[1], 1)]
    middle.append(F.interpolate(part(block.coarser, maps[2], 1), size=(4, 4), mode="bilinear"))
    expected = block.act(sum((gate(x) for x in middle), torch.zeros(1)) / 3)
    assert torch.allclose(block(maps)[1], expected, atol=1e-4)
    assert torch.allclose(
        block(maps)[2],
        block.act((gate(part(block.finer, maps[1], 2)) + gate(part(block.own, maps[2], 1))) / 2),
        atol=1e-4,
    )


def test_the_scale_gate_is_between_a_half_and_one() -> None:
    gate = ScaleGate(4)
    nn.init.constant_(gate.conv.weight, -1.0)
    x = torch.ones(1, 4, 2, 2)
    nn.init.zeros_(gate.conv.bias)
    assert torch.equal(gate(x), x / 2)  # ReLU(-4) = 0, hard sigmoid of it a half
    assert torch.equal(gate(-x), -x)  # hard sigmoid of 4 is 1


def test_pruning_takes_whole_norm_groups(tmp_path: Path) -> None:
    model = toy_model(ROWS, [5, 6])
    randomized(model)
    check_gradients(model)
    check_fuse(model)
    groups, skipped, smaller = check_cut(model, tmp_path)
    assert skipped_layers(skipped) == {
        f"model.5.blocks.{i}.{x}" for i in (0, 1) for x in ("offset.conv", "scale.conv")
    }
    block = smaller.get_submodule("model.5.blocks.0")
    assert isinstance(block, DyBlock)
    assert (
        block.own.norm.num_groups,
        block.own.norm.num_channels,
        block.own.conv.out_channels,
    ) == (11, 22, 22)  # of 16 a third
    assert block.offset.conv.out_channels == 27


def test_levels_of_different_width_are_told() -> None:
    with pytest.raises(UserError, match="1x1 Conv"):
        toy_model([*ROWS[:2], [[1, 2], 1, "DyHead", []]], [4, 5])


def test_levels_in_the_wrong_order_are_told() -> None:
    with pytest.raises(UserError, match="from fine to coarse"):
        toy_model([*ROWS[:3], [[3, 4], 1, "DyHead", []]], [5, 6])

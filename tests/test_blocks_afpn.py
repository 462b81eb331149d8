"""ASFF and AFPN: their definitions, shapes, cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.blocks.afpn import AFPN, ASFF, resample
from models.blocks.conv import Conv
from models.registry import BuildContext
from tests.custom_toys import check_cut, check_fuse, check_gradients, skipped_layers, toy_model
from tests.prune_toys import randomised
from utils.errors import UserError

ROWS: list[Any] = [
    [-1, 1, "Conv", [24, 3, 2]],  # 2, stride 8
    [-1, 1, "Conv", [32, 3, 2]],  # 3, stride 16
    [[1, 2, 3], 1, "AFPN", [16, 2, 1]],  # 4 to 6
]


def test_asff_is_a_weighted_sum_whose_weights_add_up_to_1() -> None:
    torch.manual_seed(0)
    block = ASFF(4, 3).eval()
    maps = [torch.randn(1, 4, 5, 5) for _ in range(3)]
    logits = block.weigh(torch.cat([s(x) for s, x in zip(block.squeeze, maps, strict=True)], 1))
    odds = logits.exp()
    shares = [odds[:, i : i + 1] / odds.sum(1, keepdim=True) for i in range(3)]
    expected = block.conv(sum((a * x for a, x in zip(shares, maps, strict=True)), torch.zeros(1)))
    assert torch.allclose(block(maps), expected, atol=1e-6)
    assert torch.allclose(
        block([maps[0]] * 3), block.conv(maps[0]), atol=1e-6
    )  # whatever the weights are


def test_resampling_keeps_to_the_paper() -> None:
    down, up = resample(4, 6, 2, "ReLU"), resample(6, 4, -1, "ReLU")
    assert isinstance(down, Conv)
    assert (down.conv.kernel_size, down.conv.stride, down.conv.padding) == ((4, 4), (4, 4), (0, 0))
    assert down(torch.zeros(1, 4, 8, 8)).shape == (1, 6, 2, 2)
    assert up(torch.zeros(1, 6, 8, 8)).shape == (1, 4, 16, 16)
    assert isinstance(resample(4, 4, 0, "ReLU"), nn.Identity)


def test_three_levels_by_hand() -> None:
    """The order of the fusions: two levels first, then all three."""
    torch.manual_seed(0)
    block = randomised(AFPN((8, 16, 16), 8, factor=1, n=1)).eval()
    assert isinstance(block, AFPN)
    x = [torch.randn(1, c, s, s) for c, s in ((8, 16), (16, 8), (16, 4))]
    a, b, c = (reduce(m) for reduce, m in zip(block.reduce, x, strict=True))
    for stage, number in ((block.stages[0], 2), (block.stages[1], 3)):
        maps = [a, b, c][:number]
        new = [
            stage.blocks[t](
                stage.fuse_levels[t]([stage.resample[t][s](maps[s]) for s in range(number)])
            )
            for t in range(number)
        ]
        a, b, c = [*new, c][:3]
    for level, out, got in zip((a, b, c), block.out, block(x), strict=True):
        assert torch.allclose(got, out(level), atol=1e-5)
    with pytest.raises(ValueError, match="half the size"):
        AFPN.from_yaml(BuildContext(in_channels=(8, 8), in_strides=(8.0, 32.0)), 8)


def test_pruning(tmp_path: Path) -> None:
    model = toy_model(ROWS, [4, 5, 6])
    assert [r.index for r in model.rows] == [0, 1, 2, 3, 4, 7]
    check_gradients(model)
    check_fuse(model)
    groups, skipped, _ = check_cut(model, tmp_path)
    weigh = {
        f"model.4.stages.{s}.fuse_levels.{t}.weigh"
        for s, t in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))
    }
    assert skipped_layers(skipped) == weigh
    assert sum(g.size for g in groups) > 0


def test_levels_in_the_wrong_order_are_told() -> None:
    with pytest.raises(UserError, match="half the size"):
        toy_model([*ROWS[:2], [[3, 2, 1], 1, "AFPN", [16]]], [4, 5, 6])

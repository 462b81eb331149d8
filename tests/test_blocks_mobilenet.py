"""MobileNetV3-Small against torchvision's, LSKBlock against its equations, their cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import mobilenet_v3_small

from models.blocks.lsk import LSKBlock
from models.blocks.mobilenet import MobileNetV3, multiple_of_8
from prune_methods import Prunable, run_preflight
from tests.custom_toys import check_cut, check_gradients, skipped_layers, thinned, toy_model
from tests.prune_toys import randomised


def test_the_same_weights_give_what_torchvision_gives() -> None:
    peer = randomised(mobilenet_v3_small(weights=None)).eval().features
    net = MobileNetV3().eval()
    assert sum(p.numel() for p in net.parameters()) == 927_008
    values = list(peer.state_dict().values())
    assert [v.shape for v in values] == [v.shape for v in net.state_dict().values()]
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3  # as torchvision has it
    x, maps = torch.rand(1, 3, 64, 64), []
    with torch.no_grad():
        y = x
        for i, layer in enumerate(peer):
            y = layer(y)
            if i in (0, 1, 3, 8, 12):
                maps.append(y)
        for mine, other in zip(net(x), maps, strict=True):
            assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_squeezed_widths_are_multiples_of_8_near_a_quarter() -> None:
    assert [multiple_of_8(c / 4) for c in (16, 96, 240, 120, 144, 288, 576)] == [
        8,
        24,
        64,
        32,
        40,
        72,
        144,
    ]


def test_lsk_by_its_equations() -> None:
    torch.manual_seed(0)
    block = LSKBlock(6)
    x = torch.randn(1, 6, 9, 9)
    u1 = F.conv2d(x, block.near.weight, block.near.bias, padding=2, groups=6)
    u2 = F.conv2d(u1, block.far.weight, block.far.bias, padding=9, dilation=3, groups=6)
    u1, u2 = block.half_near(u1), block.half_far(u2)
    joined = torch.cat((u1, u2), 1)
    gates = torch.sigmoid(block.select(torch.stack((joined.mean(1), joined.max(1).values), 1)))
    expected = x * block.join(gates[:, 0:1] * u1 + gates[:, 1:2] * u2)
    assert torch.allclose(block(x), expected, atol=1e-6)
    c = 24
    assert sum(p.numel() for p in LSKBlock(c).parameters()) == 3 * c * c // 2 + 78 * c + 198


def test_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "models.blocks.mobilenet.SMALL",
        (
            (3, 16, 16, True, "ReLU", 2),
            (5, 72, 24, True, "Hardswish", 2),
            (3, 88, 24, False, "ReLU", 1),
        ),
    )
    model = toy_model([[-1, 1, "MobileNetV3", []]], [4])
    check_gradients(model, 128)
    _, skipped, _ = check_cut(model, tmp_path)
    assert skipped_layers(skipped) == set()


def test_pruning_of_lsk() -> None:
    """Its gate is not exactly that of zeros, so the cut is checked by the preflight's proof and for
    shape and finiteness.
    """
    rows: list[Any] = [
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 1, "LSKBlock", []],
        [-1, 1, "Conv", [16, 1]],
    ]
    model = toy_model(rows, [4])
    check_gradients(model, 128)
    groups, skipped = run_preflight(model)
    assert skipped_layers(skipped) == {"model.3.select"}
    smaller = Prunable(model, groups).cut(thinned(groups))
    block = smaller.get_submodule("model.3")
    assert isinstance(block, LSKBlock)
    assert (block.near.groups, block.join.out_channels, block.half_near.out_channels) == (16, 16, 8)
    check_gradients(smaller, 128)

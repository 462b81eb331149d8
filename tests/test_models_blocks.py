"""Blocks against slow or official definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.blocks.conv import Conv, DWConv, space_to_depth
from models.blocks.csp import C3, Bottleneck
from models.blocks.pooling import SPP, SPPCSPC, SPPF, averaged, strongest
from models.registry import BLOCKS, BuildContext, activation
from utils.errors import UserError

SITE = BuildContext(in_channels=(8,), in_strides=(4.0,), width=0.5, act="nn.LeakyReLU(0.1)")


def test_conv_tells_yolov5_and_yolov7_rows_apart_by_type() -> None:
    yolov5 = Conv.from_yaml(SITE, 64, 3, 1, None, 1, 2, "ReLU")
    yolov7 = Conv.from_yaml(SITE, 64, 3, 1, None, 1, "nn.LeakyReLU(0.2)")
    without = Conv.from_yaml(SITE, 64, 3, 1, None, 1, False)
    assert (yolov5.conv.dilation, type(yolov5.act)) == ((2, 2), nn.ReLU)
    assert (yolov7.conv.dilation, yolov7.act.negative_slope) == ((1, 1), 0.2)
    assert isinstance(without.act, nn.Identity)
    default = Conv.from_yaml(SITE, 64)
    assert (default.act.negative_slope, default.conv.out_channels) == (0.1, 32)


def test_widths_are_scaled_to_multiples_of_8_but_the_heads_own_are_not() -> None:
    context = BuildContext(in_channels=(8,), in_strides=(1.0,), nc=2, anchors=3, width=0.25)
    assert [context.scale(c) for c in (64, 100, 8)] == [16, 32, 8]
    assert context.scale(21) == 21  # 3 x (5 + 2)


def test_default_padding_keeps_the_size() -> None:
    x = torch.zeros(1, 4, 12, 12)
    for k, d in ((1, 1), (3, 1), (5, 2), ((1, 3), 1)):
        assert Conv(4, 4, k, d=d)(x).shape == x.shape


def test_depthwise_has_as_many_groups_as_possible() -> None:
    block = DWConv.from_yaml(BuildContext(in_channels=(12,), in_strides=(1.0,)), 16, 3)
    assert block.conv.groups == 4


def test_space_to_depth_order() -> None:
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert space_to_depth(x).flatten().tolist() == [0, 2, 1, 3]


def test_sppf_equals_spp() -> None:
    torch.manual_seed(0)
    fast, plain = SPPF(8, 16, 5).eval(), SPP(8, 16, (5, 9, 13)).eval()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(1, 8, 20, 20)
    assert torch.equal(fast(x), plain(x))


def test_sppcspc_by_its_equation() -> None:
    torch.manual_seed(0)
    block = SPPCSPC(8, 6).eval()
    x = torch.randn(1, 8, 16, 16)
    y = block.cv4(block.cv3(block.cv1(x)))
    pools = [F.max_pool2d(F.pad(y, (k // 2,) * 4, value=-torch.inf), k, 1) for k in (5, 9, 13)]
    expected = block.cv7(
        torch.cat([block.cv6(block.cv5(torch.cat([y, *pools], 1))), block.cv2(x)], 1)
    )
    assert torch.equal(block(x), expected)


def test_bottleneck_residual_only_where_widths_agree() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 4, 4)
    same, wider = Bottleneck(8, 8, True).eval(), Bottleneck(8, 16, True).eval()
    assert torch.equal(same(x), x + same.cv2(same.cv1(x)))
    assert wider(x).shape == (1, 16, 4, 4)


def test_c3_takes_its_repeats_inside() -> None:
    context = BuildContext(in_channels=(8,), in_strides=(4.0,), repeats=3)
    block = C3.from_yaml(context, 16, False)
    assert len(block.m) == 3
    assert not any(step.add for step in block.m)


def test_activation_is_read_without_running_anything() -> None:
    assert activation("nn.LeakyReLU(0.3)").negative_slope == 0.3
    assert activation("nn.LeakyReLU(negative_slope=0.3)").negative_slope == 0.3
    assert isinstance(activation("SiLU"), nn.SiLU)
    for hostile in (
        "__import__('os').system('true')",
        "nn.Linear(1, 2)",
        "nn.ReLU(open('x'))",
        "nn.SiLU().forward",
        "eval('1')",
    ):
        with pytest.raises(UserError):
            activation(hostile)


def test_two_activations_live_in_one_process() -> None:
    first, second = Conv(4, 4), Conv(4, 4, act="nn.LeakyReLU(0.1)")
    assert (type(first.act), type(second.act)) == (nn.SiLU, nn.LeakyReLU)


@pytest.mark.parametrize(
    "name", ["GhostConv", "C3Ghost", "BottleneckCSP", "Focus", "RepConv", "SPP", "ReOrg"]
)
def test_blocks_give_finite_maps_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    args = [] if name == "ReOrg" else [16]
    block = BLOCKS[name].from_yaml(BuildContext(in_channels=(8,), in_strides=(4.0,)), *args)
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    y = block(x)
    y.square().sum().backward()
    assert torch.isfinite(y).all()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in block.parameters())


@pytest.mark.parametrize("size", [(3, 2), (4, 3), (5, 6)])
def test_pooling_to_a_size_is_pytorchs_adaptive_one(size: tuple[int, int]) -> None:
    """(6, 6) to cells that are equal, and to cells that are not."""
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(averaged(x, size), F.adaptive_avg_pool2d(x, size))
    assert torch.equal(strongest(x, size), F.adaptive_max_pool2d(x, size))

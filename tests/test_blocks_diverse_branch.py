"""DiverseBranchBlock: what it deploys as, against plain arithmetic, and cut."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.blocks.diverse_branch import Bordered, DiverseBranchBlock
from models.registry import BuildContext
from prune_methods.surgery.verify import deployed_macs
from tests.block_checks import assert_prunes, built, fused_difference, without_gradient
from tests.prune_toys import randomised
from utils.profiling import count_parameters

ROW = [-1, 1, "DiverseBranchBlock", [24, 3, 1]]


@pytest.mark.parametrize(("k", "s"), [(3, 1), (3, 2), (5, 1)])
def test_deployed_is_one_convolution_that_computes_the_same(k: int, s: int):
    torch.manual_seed(0)
    block = randomised(DiverseBranchBlock(6, 8, k, s, "ReLU")).double().eval()
    nn.init.normal_(block.inner.point[0].weight)
    x = torch.randn(2, 6, 11, 11, dtype=torch.float64)
    fused = block.fuse()
    torch.testing.assert_close(fused(x), block(x), atol=1e-10, rtol=1e-10)
    assert count_parameters(fused) == 8 * 6 * k * k + 8


def test_branches_by_the_formula():
    """Each convolution with the border of the map before it, which is what it gives for zero pixels
    outside of the image.
    """
    torch.manual_seed(0)
    block = randomised(DiverseBranchBlock(4, 6)).eval()
    x = torch.randn(1, 4, 7, 7)
    padded = F.pad(x, (1, 1, 1, 1))  # 1x1 layers of a zero-padded image make exactly that border
    inner, mixed = block.inner.point(padded), block.mixed.point(padded)
    torch.testing.assert_close(block.inner(x), inner, atol=1e-5, rtol=1e-5)
    third = block.outer[1](F.conv2d(inner, block.outer[0].weight))
    fourth = block.mean_bn(F.avg_pool2d(mixed, 3, 1))
    first, second = block.dense[1](F.conv2d(x, block.dense[0].weight, padding=1)), block.point(x)
    torch.testing.assert_close(
        block(x), F.silu(first + second + third + fourth), atol=1e-5, rtol=1e-5
    )


def test_inner_convolution_starts_as_the_identity():
    block = DiverseBranchBlock(5, 7)
    assert torch.equal(block.inner.point[0].weight.flatten(1), torch.eye(5))


def test_border_does_not_enter_the_statistics():
    torch.manual_seed(0)
    part, x = Bordered(3, 4, 1).train(), torch.randn(2, 3, 4, 4) + 5
    part.point[1].momentum = 1.0
    expected = part.point[0](x).mean((0, 2, 3))
    part(x)
    torch.testing.assert_close(part.point[1].running_mean, expected)


@pytest.mark.parametrize(
    "arguments", [(8, 1), (8, 4), (8, 3, 1, 0), (8, 3, 1, None, 2), (8, [3, 3])]
)
def test_what_it_cannot_be(arguments: tuple[object, ...]):
    with pytest.raises(ValueError, match="odd k from 3"):
        DiverseBranchBlock.from_yaml(BuildContext((8,), (4.0,)), *arguments)


def test_yaml_arguments_are_those_of_conv():
    block = DiverseBranchBlock.from_yaml(
        BuildContext((8,), (4.0,), width=0.5), 32, 3, 2, 1, 1, "nn.ReLU()"
    )
    assert block(torch.zeros(1, 8, 8, 8)).shape == (1, 16, 4, 4)
    assert isinstance(block.act, nn.ReLU)


def test_trains_folds_and_prunes(tmp_path):
    model = built(ROW)
    assert without_gradient(model) == []
    assert fused_difference(model) < 1e-4
    smaller, kept = assert_prunes(model, tmp_path)
    why = "its width folds away, so that cutting it saves nothing"
    assert kept["model.3.inner.point.0"] == f"its block (DiverseBranchBlock) keeps it whole: {why}"
    assert set(kept) == {"model.3.inner.point.0", "model.5.m.0"}
    block = smaller.model[3]
    assert block.dense[0].weight.shape == (12, 16, 3, 3) and block.inner.point[0].weight.shape == (
        32,
        16,
        1,
        1,
    )
    assert block.fuse().conv.weight.shape == (12, 16, 3, 3)


def test_costs_what_the_deployed_convolution_costs():
    plain = built([-1, 1, "Conv", [24, 3, 1]])
    assert deployed_macs(built(ROW), 64) == deployed_macs(plain, 64)

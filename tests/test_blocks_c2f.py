"""C2f against the form with one convolution and `chunk`, and cut."""

import pytest
import torch
from torch import nn

from models.blocks.c2f import C2f, TwoConvs
from models.blocks.conv import Conv
from models.registry import BuildContext
from tests.block_checks import assert_prunes, built, fused_difference, without_gradient
from tests.prune_toys import randomised
from utils.profiling import count_parameters


def joined(one: Conv, other: Conv) -> Conv:
    """One convolution with the outputs of both."""
    both = Conv(one.conv.in_channels, 2 * one.conv.out_channels).eval()
    pairs = (
        (a, b, c)
        for a, b, c in zip(
            one.state_dict().items(), other.state_dict().values(), both.state_dict(), strict=True
        )
    )
    both.load_state_dict({name: torch.cat((a, b)) if a.dim() else a for (_, a), b, name in pairs})
    return both


@pytest.mark.parametrize("shortcut", [False, True])
def test_equals_the_form_with_halves_of_one_convolution(shortcut: bool):
    torch.manual_seed(0)
    block = randomised(C2f(6, 16, 2, shortcut)).eval()
    x = torch.randn(2, 6, 5, 5)
    first = joined(block.cv0, block.cv1)
    left, right = first(x).chunk(2, 1)
    step1 = block.m[0].cv2(block.m[0].cv1(right)) + (right if shortcut else 0)
    step2 = block.m[1].cv2(block.m[1].cv1(step1)) + (step1 if shortcut else 0)
    torch.testing.assert_close(
        block(x), block.cv2(torch.cat((left, right, step1, step2), 1)), atol=1e-5, rtol=1e-5
    )
    assert count_parameters(block.cv0) + count_parameters(block.cv1) == count_parameters(first)


def test_repeats_and_arguments_of_the_row():
    block = C2f.from_yaml(
        BuildContext((8,), (4.0,), width=0.5, repeats=3, act="nn.ReLU()"), 32, True, 2, 0.25
    )
    assert [type(step) for step in block.m] == [TwoConvs] * 3
    assert (
        block.cv0.conv.out_channels,
        block.cv2.conv.in_channels,
        block.cv2.conv.out_channels,
    ) == (4, 5 * 4, 16)
    assert block.m[0].add and block.m[0].cv2.conv.groups == 2 and isinstance(block.cv0.act, nn.ReLU)


@pytest.mark.parametrize("shortcut", [False, True])
def test_trains_folds_and_prunes(shortcut: bool, tmp_path):
    model = built([-1, 2, "C2f", [32, shortcut]])
    assert without_gradient(model) == []
    assert fused_difference(model) < 1e-4
    smaller, kept = assert_prunes(model, tmp_path)
    assert set(kept) == {"model.5.m.0"}
    block = smaller.model[3]
    assert (
        block.cv0.conv.out_channels,
        block.cv1.conv.out_channels,
        block.cv2.conv.in_channels,
    ) == (8, 8, 32)

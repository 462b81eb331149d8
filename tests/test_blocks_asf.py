"""Scale sequences and their attention against their equations and 3-D layers."""

import pytest
import torch
from torch import nn

from models.blocks.asf import ChannelLocalAttention, LocalAttention, ScalSeq, ZoomCat
from models.registry import BuildContext
from tests.block_checks import assert_prunes, built, fused_difference, without_gradient


def test_zoom_by_hand() -> None:
    large = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    y = ZoomCat()([large, torch.tensor([[[[7.0]]]]), torch.tensor([[[[8.0]]]])])
    assert y.flatten().tolist() == [6 + 3, 7, 8]  # the maximum + the mean
    big = ZoomCat()(
        [torch.rand(1, 2, 8, 8), torch.rand(1, 3, 4, 4), torch.arange(4.0).view(1, 1, 2, 2)]
    )
    assert big[0, 5, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("training", [True, False])
def test_scale_sequence_equals_3d_layers_over_the_stack(training: bool) -> None:
    torch.manual_seed(0)
    block = ScalSeq((6, 4, 8), 4)
    conv, norm = nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4)
    conv.weight.data, conv.bias.data = (
        block.conv.weight.data[..., None].clone(),
        block.conv.bias.data.clone(),
    )  # type: ignore[union-attr]
    x = [torch.randn(2, c, size, size) for c, size in ((6, 8), (4, 4), (8, 2))]
    block.train(training), norm.train(training)
    maps = [align(level) for align, level in zip(block.align, x, strict=True)]
    stack = torch.stack(
        [
            y.repeat_interleave(8 // y.shape[2], 2).repeat_interleave(8 // y.shape[2], 3)
            for y in maps
        ],
        2,
    )
    expected = nn.functional.leaky_relu(norm(conv(stack)), 0.1).amax(2)
    assert torch.allclose(block(x), expected, atol=1e-5)
    assert torch.allclose(block.bn.running_var, norm.running_var, atol=1e-5)


def test_the_first_level_needs_no_convolution_where_it_is_as_wide() -> None:
    assert [isinstance(m, nn.Identity) for m in ScalSeq((4, 4, 8), 4).align] == [True, False, False]


def test_local_attention_row_by_row() -> None:
    torch.manual_seed(0)
    block = LocalAttention(32).eval()
    x = torch.randn(1, 32, 3, 5)
    with torch.no_grad():
        expected = x.clone()
        for i in range(3):
            squeezed = block.act(block.bn(block.squeeze(x[:, :, i].mean(2)[..., None, None])))
            expected[:, :, i] *= block.rows(squeezed).sigmoid()[..., 0]
        for j in range(5):
            squeezed = block.act(block.bn(block.squeeze(x[..., j].mean(2)[..., None, None])))
            expected[..., j] *= block.columns(squeezed).sigmoid()[..., 0]
        assert torch.allclose(block(x), expected, atol=1e-6)
    assert block.squeeze.out_channels == 2


def test_attention_gates_the_first_adds_the_second_then_gates_the_places() -> None:
    torch.manual_seed(0)
    block = ChannelLocalAttention(16).eval()
    a, b = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    assert torch.equal(block([a, b]), block.local(block.channel(a) + b))
    with pytest.raises(ValueError, match="same width"):
        ChannelLocalAttention.from_yaml(BuildContext(in_channels=(16, 8), in_strides=(8.0, 8.0)))


def test_it_trains_folds_and_prunes(tmp_path) -> None:
    model = built(
        [[0, 1, 2], 1, "ScalSeq", [32]],
        [0, 1, "Conv", [32]],
        [[-1, 3], 1, "attention_model", [32]],
        [[-1, 1, 2], 1, "Zoom_cat", []],
    )
    bias = "model.3.conv.bias"  # the batch norm takes it out again
    assert [name for name in without_gradient(model) if name != bias] == []
    assert fused_difference(model) < 1e-4
    smaller, whole = assert_prunes(model, tmp_path)
    assert list(whole) == ["model.8.m.0"]
    assert smaller.model[3].conv.out_channels == smaller.model[4].conv.out_channels == 16

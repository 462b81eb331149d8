"""DCNv2 against its formula, torchvision and its exportable form; its cut."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from models.blocks.deformable import DCNv2, DeformableConv2d, deform_by_sampling
from tests.custom_toys import check_cut, check_fuse, check_gradients, skipped_layers, toy_model
from utils.profiling import count_macs


def by_formula(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Equation 1 of the paper, one output element after the other; image 0, 3x3, padding 1."""
    _, _, height, width = x.shape

    def at(row: float, column: float) -> Tensor:
        """Bilinear, zero outside."""
        value = torch.zeros(x.shape[1], dtype=x.dtype)
        top, left = int(row // 1), int(column // 1)
        for r in (top, top + 1):
            for c in (left, left + 1):
                if 0 <= r < height and 0 <= c < width:
                    value += x[0, :, r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
        return value

    out = torch.zeros(weight.shape[0], *offset.shape[2:], dtype=x.dtype)
    for i in range(offset.shape[2]):
        for j in range(offset.shape[3]):
            for tap in range(9):
                row = i * stride - 1 + tap // 3 + float(offset[0, 2 * tap, i, j])
                column = j * stride - 1 + tap % 3 + float(offset[0, 2 * tap + 1, i, j])
                out[:, i, j] += (
                    weight[:, :, tap // 3, tap % 3] @ at(row, column) * mask[0, tap, i, j]
                )
    return out


@pytest.mark.parametrize("stride", [1, 2])
def test_both_forms_are_the_papers_formula(stride: int) -> None:
    torch.manual_seed(0)
    conv = DeformableConv2d(3, 4, 3, stride, 1).double()
    x = torch.randn(1, 3, 5, 6, dtype=torch.double)
    size = (5, 6) if stride == 1 else (3, 3)
    offset, mask = (
        2 * torch.randn(1, 18, *size, dtype=torch.double),
        torch.rand(1, 9, *size, dtype=torch.double),
    )
    bias = cast(Tensor, conv.bias)
    with torch.no_grad():
        expected = by_formula(x, offset, mask, conv.weight, stride) + bias[:, None, None]
        assert torch.allclose(conv(x, offset, mask)[0], expected)
        assert torch.allclose(deform_by_sampling(conv, x, offset, mask)[0], expected)


def test_the_exported_form_is_torchvisions_at_any_batch_and_dilation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    conv = DeformableConv2d(4, 2, 3, 2, 2, dilation=2)
    x, offset, mask = torch.randn(2, 4, 7, 9), 3 * torch.randn(2, 18, 4, 5), torch.rand(2, 9, 4, 5)
    expected = deform_conv2d(x, offset, conv.weight, conv.bias, (2, 2), (2, 2), (2, 2), mask)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert torch.allclose(conv(x, offset, mask), expected, atol=1e-5)


def test_a_new_block_is_a_plain_convolution_of_half_the_weight() -> None:
    torch.manual_seed(0)
    block = DCNv2(4, 6).eval()
    x = torch.randn(1, 4, 6, 6)
    plain = torch.nn.functional.conv2d(x, block.conv.weight / 2, padding=1)  # sigmoid(0)
    assert torch.allclose(block.conv(x, *block.offset(x)), plain, atol=1e-6)
    assert sum(p.numel() for p in block.parameters()) == 9 * 4 * 6 + 2 * 6 + 27 * (9 * 4 + 1)


def rows() -> list[Any]:
    return [[-1, 1, "DCNv2", [24, 3, 2]], [-1, 1, "DCNv2", [24]]]


def moved(model: torch.nn.Module) -> None:
    """Offsets as after some training."""
    for module in model.modules():
        if isinstance(module, DCNv2):
            torch.nn.init.normal_(module.offset.conv.weight, std=0.2)


def test_pruning(tmp_path: Path) -> None:
    model = toy_model(rows(), [3])
    check_gradients(model)
    moved(model)
    check_fuse(model)
    _, skipped, smaller = check_cut(model, tmp_path)
    assert skipped_layers(skipped) == {"model.2.offset.conv", "model.3.offset.conv"}
    assert all("keeps it whole" in s.reason for s in skipped if s.layer.endswith("offset.conv"))
    first, second = cast(DCNv2, smaller.model[2]), cast(DCNv2, smaller.model[3])
    assert first.offset.conv.weight.shape == (27, 11, 3, 3)  # of 16 inputs a third, 5, are gone
    assert first.conv.weight.shape == (16, 11, 3, 3)
    assert second.offset.conv.weight.shape == (27, 16, 3, 3)


def test_moving_kernels_count_as_plain_ones() -> None:
    moving, plain = DCNv2(8, 4), torch.nn.Conv2d(8, 4, 3, padding=1)
    offsets = 27 * 9 * 8 * 16 * 16
    assert (
        count_macs(moving, 16, 8)
        == count_macs(plain, 16, 8) + offsets
        == 4 * 9 * 8 * 16 * 16 + offsets
    )

"""CARAFE cell by cell, DySample against PyTorch's bilinear interpolation."""

import pytest
import torch
import torch.nn.functional as F

from models.blocks.upsampling import CARAFE, DySample
from models.registry import BuildContext
from tests.block_checks import assert_prunes, built, fused_difference, without_gradient


def test_carafe_cell_by_cell() -> None:
    torch.manual_seed(0)
    block = CARAFE(2, 2, 3, hidden=4).eval()
    x = torch.randn(1, 2, 3, 4)
    with torch.no_grad():
        kernels = F.pixel_shuffle(block.encode(block.compress(x)), 2).softmax(1)  # (1, 9, 6, 8)
        padded = F.pad(x, (1, 1, 1, 1))
        expected = torch.zeros(1, 2, 6, 8)
        for row in range(6):
            for column in range(8):
                window = padded[
                    0, :, row // 2 : row // 2 + 3, column // 2 : column // 2 + 3
                ].flatten(1)
                expected[0, :, row, column] = window @ kernels[0, :, row, column]
        assert torch.allclose(block(x), expected, atol=1e-6)


def test_dysample_is_bilinear_without_offsets_and_reads_aside_with_them() -> None:
    torch.manual_seed(0)
    block = DySample(3, 2)
    torch.nn.init.zeros_(block.offset.weight)
    x = torch.randn(2, 3, 5, 7)
    assert torch.allclose(block(x), F.interpolate(x, scale_factor=2.0, mode="bilinear"), atol=1e-5)
    block.offset.bias.data[:4] = 4.0  # a quarter of it: one cell to the right
    aside = F.interpolate(
        torch.cat((x[..., 1:], x[..., -1:]), 3), scale_factor=2.0, mode="bilinear"
    )
    assert torch.allclose(block(x)[..., 1:-3], aside[..., 1:-3], atol=1e-5)  # away from the border


@pytest.mark.parametrize(("name", "args"), [("CARAFE", [2, 3, 16]), ("DySample", [2])])
def test_they_train_fold_and_prune(name: str, args: list[int], tmp_path) -> None:
    model = built([-1, 1, name, args])
    assert without_gradient(model) == []
    assert fused_difference(model) < 1e-4
    smaller, whole = assert_prunes(model, tmp_path)
    kept = {"CARAFE": "model.3.encode", "DySample": "model.3.offset"}[name]
    assert set(whole) == {kept, "model.5.m.0"}
    assert smaller.model[2].conv.out_channels == 16
    if name == "CARAFE":
        assert smaller.model[3].compress.conv.out_channels == 8


def test_a_window_needs_a_middle() -> None:
    with pytest.raises(ValueError, match="odd"):
        CARAFE.from_yaml(BuildContext(in_channels=(4,), in_strides=(8.0,)), 2, 4)

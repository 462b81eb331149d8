"""Learned fusion weights by hand."""

import pytest
import torch

from models.blocks.fusion import BiFPNAdd, BiFPNConcat
from tests.block_checks import assert_prunes, built, fused_difference, without_gradient
from utils.errors import UserError


def test_weights_are_normalised_and_never_below_zero() -> None:
    block, join = BiFPNAdd(3), BiFPNConcat(3)
    block.weight.data = join.weight.data = torch.tensor([1.0, 3.0, -2.0])
    x = [torch.full((1, 1, 1, 1), v) for v in (10.0, 20.0, 1000.0)]
    assert join(x).flatten().tolist() == pytest.approx([10 / 4.0001, 60 / 4.0001, 0])
    assert block(x).item() == pytest.approx(70 / 4.0001)


def test_they_start_as_a_mean() -> None:
    x = torch.rand(1, 2, 3, 3)
    assert torch.allclose(BiFPNAdd(4)([x] * 4), x, rtol=1e-4)


@pytest.mark.parametrize("name", ["BiFPN_Concat", "BiFPN_Add"])
def test_they_train_fold_and_prune(name: str, tmp_path) -> None:
    model = built([1, 1, "Conv", [32, 3, 2]], [[-1, 2], 1, name, []])
    assert without_gradient(model) == []
    assert fused_difference(model) < 1e-4
    smaller, whole = assert_prunes(model, tmp_path)
    assert list(whole) == ["model.6.m.0"]
    assert smaller.model[2].conv.out_channels == 16 and len(smaller.model[4].weight) == 2


def test_a_sum_needs_maps_of_one_width() -> None:
    with pytest.raises(UserError, match="use BiFPN_Concat"):
        built([1, 1, "Conv", [40, 3, 2]], [[-1, 2], 1, "BiFPN_Add", []])

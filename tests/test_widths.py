"""Widths of layers, by hand."""

import pytest
import torch
from torch import Tensor, nn

from models.widths import channel_dim, channels_of


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (nn.Conv2d(3, 8, 5), (8, 3)),
        (nn.Conv2d(6, 8, 3, groups=2), (8, 6)),
        (nn.ConvTranspose2d(3, 8, 2), (8, 3)),
        (nn.Linear(3, 8), (8, 3)),
        (nn.BatchNorm2d(5), (5, 5)),
        (nn.BatchNorm2d(5, affine=False), (5, 5)),
        (nn.GroupNorm(2, 6, affine=False), (6, 6)),
        (nn.PReLU(4), (4, 4)),
    ],
)
def test_output_and_input_channels(layer: nn.Module, channels: tuple[int, int]) -> None:
    assert channels_of(layer) == channels


@pytest.mark.parametrize(("parameter", "dim"), [(torch.zeros(1, 7, 1, 1), 1), (torch.zeros(7), 0)])
def test_channels_of_a_bare_parameter(parameter: Tensor, dim: int) -> None:
    assert channel_dim(parameter) == dim

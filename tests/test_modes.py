"""Evaluation mode for a while: every module gets its own mode back."""

import pytest
from torch import nn

from utils.engine.modes import evaluating


def modes_of(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def model_with_a_frozen_norm() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()))
    model[1][0].eval()
    return model


def test_a_frozen_norm_stays_frozen_and_the_rest_trains_again() -> None:
    model = model_with_a_frozen_norm()
    with evaluating(model):
        assert modes_of(model) == [False] * 5
    assert modes_of(model) == [True, True, True, False, True]


def test_a_mode_changed_inside_is_restored() -> None:
    model = model_with_a_frozen_norm().eval()
    with evaluating(model):
        model[1][0].train()
    assert modes_of(model) == [False] * 5


def test_modes_are_restored_after_an_error() -> None:
    model = model_with_a_frozen_norm()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert modes_of(model) == [True, True, True, False, True]

"""Blocks of users that torch or pruning would fail on: they train, deploy, prune, or are named."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import build_model, load_model, save_model
from models.registry import BLOCKS, BuildContext
from models.training_checks import single_values_borne, unused_parameters
from prune_methods import PRUNERS, Prunable, Target
from utils.layout import channels_last


class _Same(nn.Module):
    """A block that keeps its channels."""

    @classmethod
    def from_yaml(cls, context: BuildContext) -> Any:
        return cls(context.c1)  # type: ignore[call-arg]


class Pooled(_Same):
    """The image branch of ASPP: pooled to one cell, with a batch norm."""

    def __init__(self, c: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(self.conv(x.mean((2, 3), keepdim=True)))


class Mixed(_Same):
    """CondConv: a kernel mixed from three, a parameter of five dimensions."""

    def __init__(self, c: int):
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(3, c, c, 3, 3) / 30)
        self.route = nn.Linear(c, 3)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.route(x.mean((0, 2, 3))).softmax(0)
        return F.conv2d(x, torch.einsum("k,koihw->oihw", shares, self.kernels), padding=1)


class ConvNext(_Same):
    """Linear layers over (N, H, W, C)."""

    def __init__(self, c: int):
        super().__init__()
        self.up, self.down = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Idle(_Same):
    """A layer that forward never calls."""

    def __init__(self, c: int):
        super().__init__()
        self.conv, self.forgotten = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    items = dict(BLOCKS._items)
    for block in (Pooled, Mixed, ConvNext, Idle):
        items[f"Odd{block.__name__}"] = block
    monkeypatch.setattr(BLOCKS, "_items", items)


def model_with(block: str, args: list[Any] | None = None) -> Any:
    row = [-1, 1, block, args or []]
    torch.manual_seed(0)
    return build_model(
        {
            "nc": 2,
            "anchors": [[10, 13, 16, 30]],
            "backbone": [
                [-1, 1, "Conv", [16, 3, 2]],
                [-1, 1, "Conv", [16, 3, 2]],
                row,
                [-1, 1, "Conv", [16, 3]],
            ],
            "head": [[[3], 1, "Detect", ["nc", "anchors"]]],
        }
    )


def test_a_batch_of_one_image_behind_a_global_pooling(tmp_path: Path) -> None:
    model = model_with("OddPooled").train()
    norm = model.get_submodule("model.2.bn")
    before = norm.running_mean.clone()
    model(torch.rand(1, 3, 64, 64))[0].sum().backward()
    assert norm.training and torch.equal(norm.running_mean, before)
    assert norm.weight.grad is not None
    model(torch.rand(2, 3, 64, 64))
    assert norm.training and not torch.equal(norm.running_mean, before)
    save_model(model, tmp_path / "x.pt")
    load_model(tmp_path / "x.pt").train()(torch.rand(1, 3, 64, 64))
    model.fuse()(torch.rand(1, 3, 64, 64))


def test_a_batch_norm_is_thawed_after_an_error() -> None:
    model = model_with("OddPooled").train()
    norm = model.get_submodule("model.2.bn")
    with pytest.raises(RuntimeError), single_values_borne(model):
        norm(torch.rand(1, 5, 1, 1))  # 5 channels are not what the norm has
    assert norm.training and not norm._forward_hooks and not norm._forward_pre_hooks


def test_five_dimensions_under_channels_last() -> None:
    model = model_with("OddMixed")
    first, kernels = model.model[0].conv.weight, model.model[2].kernels
    assert channels_last(model) is model and model.model[2].kernels is kernels
    assert model.model[0].conv.weight is first
    assert first.is_contiguous(memory_format=torch.channels_last) and kernels.is_contiguous()
    model.fuse()(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("block", ["OddConvNext", "OddPooled", "OddMixed"])
def test_constants_are_folded(block: str) -> None:
    model = model_with(block)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight[::2], norm.bias[:] = 0, torch.linspace(-1, 1, len(norm.bias))
    criterion = PRUNERS["l1"]()
    prunable = Prunable.of(model, (), 60).for_criterion(criterion)
    masks = prunable.search(criterion, Target(1.3, imgsz=64)).masks
    smaller = prunable.cut(masks)
    assert prunable.fold_constants(masks, smaller).folded > 0
    smaller.eval()(torch.rand(1, 3, 64, 64))


def test_linear_layers_over_the_last_dimension_fold_what_their_inputs_are() -> None:
    model = model_with("OddConvNext").eval()
    with torch.no_grad():
        norm = model.get_submodule("model.1.bn")
        norm.weight[3], norm.bias[3] = 0, 2.0
    prunable = Prunable.of(model, (), 60)
    masks = {group.name: torch.ones(group.size).bool().numpy() for group in prunable.groups}
    masks["model.1.conv"][3] = False
    smaller = prunable.cut(masks)
    prunable.fold_constants(masks, smaller)
    x = torch.rand(1, 3, 64, 64)
    wanted, found = model(x).raw[0], smaller.eval()(x).raw[0]
    assert torch.allclose(wanted, found, atol=1e-4)


@pytest.mark.parametrize("groups", [16, 4, 1])
def test_a_transposed_convolution_keeps_its_neighbours_and_no_others(groups: int) -> None:
    model = model_with("nn.ConvTranspose2d", [16, 2, 2, 0, 0, groups])
    prunable = Prunable.of(model, (), 60)
    assert {group.name for group in prunable.groups} == {"model.0.conv", "model.3.conv"}
    reasons = {skipped.layer: skipped.reason for skipped in prunable.skipped}
    assert len(reasons) == len(prunable.skipped) and "model.2" in reasons
    assert "model.2 (" in reasons["model.1.conv"]


def test_unused_parameters_are_named_and_the_model_is_untouched() -> None:
    model = model_with("OddIdle")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert unused_parameters(model) == ["model.2.forgotten.weight", "model.2.forgotten.bias"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert unused_parameters(model_with("OddMixed")) == []
    model.get_submodule("model.2.forgotten").requires_grad_(False)
    assert unused_parameters(model) == []

"""Small networks with the couplings of real ones, and statistics that expose wrong pruning."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from prune_methods import (
    ChannelGroup,
    ChannelIndex,
    Criterion,
    Evidence,
    EvidenceSource,
    GateCriterion,
    GradientCriterion,
    Masks,
    Prunable,
    gate_evidence,
    gradient_evidence,
)
from prune_methods.groups.graph import raw_outputs
from recipes.prune.context import limits_of


def unit(c1: int, c2: int, k: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias, its batch norm, and SiLU."""
    return nn.Sequential(
        nn.Conv2d(c1, c2, k, padding=k // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c2),
        nn.SiLU(),
    )


class Chain(nn.Module):
    """Three layers in a row: stem (8) -> mid (6) -> out (4)."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid, self.out = unit(3, 8, 3), unit(8, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mid(self.stem(x)))


class Csp(nn.Module):
    """A C3-like network with a residual and two concatenations.

    The second one joins a tensor with pooled copies of itself, as SPPF does.
    """

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 24, 3)
        self.left, self.right, self.inner = unit(24, 12), unit(24, 20), unit(12, 12, 3)
        self.join = unit(32, 28)
        self.pool, self.merge = nn.MaxPool2d(3, 1, 1), unit(56, 16)
        self.wise = unit(16, 16, 3, groups=16)
        self.out = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        left = self.left(x)
        x = self.join(torch.cat((left + self.inner(left), self.right(x)), 1))
        x = self.merge(torch.cat((x, self.pool(x)), 1))
        return [self.out(self.wise(x))]


class Rep(nn.Module):
    """RepConv-like branches with an identity batch norm.

    YOLOv7's implicit vectors stand around the last convolution.
    """

    deploy_free = ("point",)

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 10, 3)
        self.dense, self.point, self.same = (
            unit(10, 10, 3)[:2],
            unit(10, 10)[:2],
            nn.BatchNorm2d(10),
        )
        self.implicit = nn.Parameter(torch.randn(1, 10, 1, 1))
        self.out = nn.Conv2d(10, 6, 1)
        self.factor = nn.Parameter(torch.randn(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = nn.functional.silu(self.dense(x) + self.point(x) + self.same(x))
        return self.factor * self.out(self.implicit + x)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw statistics, gamma and beta as they are after some training.

    With fresh ones (0 and 1) many wrong prunings would pass unseen.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
        if isinstance(vars(module).get("_parameters", {}).get("implicit"), nn.Parameter):
            module.implicit.data.normal_(0.5, 0.5, generator=generator)
    return model


def toy(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """Build a network of this kind with seeded weights and random statistics."""
    torch.manual_seed(seed)
    return randomised(kind(), seed)


def measure_for(model: nn.Module, found: list[ChannelGroup], criterion: Criterion, size: int = 32):
    """Return the source of a criterion's tables, or None for a criterion of weights alone.

    The tables come from gradients of the squared outputs on two random images.
    """
    if not isinstance(criterion, GradientCriterion | GateCriterion):
        return None
    gather = gate_evidence if isinstance(criterion, GateCriterion) else gradient_evidence
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))

    def losses(model: nn.Module, per_image: bool):
        for part in images.split(1 if per_image else 2):
            outputs = raw_outputs(model(part))
            yield sum(
                y.square().mean() for y in (outputs if isinstance(outputs, list) else [outputs])
            )

    def measure(masks: Masks) -> Evidence:
        masked = Prunable(model, found).zero_channels(masks)
        return gather(ChannelIndex(masked, found), criterion, losses)

    return measure


def source_of(measure: Any, every: int = 0) -> EvidenceSource | None:
    """Return what `Prunable.search` takes, None for None."""
    return EvidenceSource(measure, every) if measure else None


def run_of(opt: Any, loader: Any, folder: Any = None) -> Any:
    """Return what the recipes need of a run of prune.py, with a loader of the test's own."""
    limits = limits_of(opt)
    return SimpleNamespace(opt=opt, plain_loader=loader, folder=folder, limits=limits)


TINY_REP = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 1, "RepConv", [24, 3, 1]],
        [-1, 1, "RepConv", [32, 3, 2]],
        [-1, 1, "SPPCSPC", [32]],
    ],
    "head": [
        [-1, 1, "Conv", [24, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [[-1, 4], 1, "IDetect", ["nc", "anchors"]],
    ],
}
"""A YAML with YOLOv7's couplings: RepConv with and without identity, SPPCSPC, implicit vectors."""

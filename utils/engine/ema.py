"""Exponential moving average of a model's weights and buffers."""

import math
from copy import deepcopy
from itertools import chain

import torch
from torch import nn


class ModelEMA:
    """Average of a model's weights over the optimizer steps.

    ema = d * ema + (1 - d) * model, with d = decay * (1 - exp(-updates / tau)). The ramp lets early
    averages follow the quickly moving weights, as in YOLOv5. `.model` is a copy in eval mode;
    integer buffers are copied, not averaged.

    The source's tensors are looked up once. From then on they must be changed in place, as training
    and loading do.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000.0):
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.decay, self.tau, self.updates = decay, tau, 0
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages = [average for average, _ in floats]
        self._sources = [source for _, source in floats]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Add the model's weights after an optimizer step to the average."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.tau))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for average, source in self._counters:
            average.copy_(source)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]

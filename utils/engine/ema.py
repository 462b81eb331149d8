"""Exponential moving average of a model's weights and buffers."""

import math
from copy import deepcopy
from itertools import chain

import torch
from torch import nn


class ModelEMA:
    """Averages a model: `ema = d * ema + (1 - d) * model` with `d = decay * (1 - exp(-updates /
    tau))`.

    The ramp lets early averages follow the quickly moving weights (as in YOLOv5). `.model` is a
    copy in eval mode. The model's tensors are taken hold of once: they must be changed in place
    from then on, as training and loading do.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000.0):
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.decay, self.tau, self.updates = decay, tau, 0
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        floats = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._averages, self._sources = [a for a, _ in floats], [b for _, b in floats]
        self._counters = [(a, b) for a, b in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take one optimizer step's result in."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / self.tau))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for average, source in self._counters:
            average.copy_(source)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]

"""Fresh batch norm statistics: those of the uncut model no longer fit what is left of it."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def recalibrate_bn(model: nn.Module, loader: Iterable[Any], batches: int) -> int:
    """Replace the running statistics by their plain average over up to `batches` batches; weights stay as they are.

    Only batch norms run in train mode. Batches have `.images`, uint8 (N, 3, H, W). Modes and momenta are restored; gives the
    number of batches used. With none the model stays as it is.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    training = [m for m in model.modules() if m.training]
    momenta = [m.momentum for m in norms]
    device = next(model.parameters()).device
    model.eval()
    used = 0
    with torch.no_grad():
        for batch in islice(loader, batches):
            if not used:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # torch's word for a cumulative average
                    norm.train()
            model(batch.images.to(device).float() / 255)
            used += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    for module in training:
        module.training = True
    return used

"""Fresh batch norm statistics: those of the uncut model no longer fit what is left of it, nor do
old ones what shrinks fast.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.engine.hooks import Hook, TrainerState
from utils.engine.modes import evaluating
from utils.images import unit_range

FRESH_IMAGES = 128


def recalibrate_bn(model: nn.Module, loader: Iterable[Any], batches: int) -> int:
    """Replace the running statistics by their plain average over up to `batches` batches; weights
    stay as they are.

    Only batch norms run in train mode. Batches have `.images`, uint8 (N, 3, H, W). Modes and
    momenta are restored; gives the number of batches used. With none the model stays as it is.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    device = next(model.parameters()).device
    used = 0
    with evaluating(model), torch.no_grad():
        for batch in islice(loader, batches):
            if not used:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # torch's word for a cumulative average
                    norm.train()
            model(unit_range(batch.images.to(device)))
            used += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return used


class FreshStatistics(Hook):
    """Gives the averaged model batch norm statistics of its own weights at the end of each epoch;
    for sparse training.

    Running statistics are those of some dozens of steps ago. A penalty that shrinks weights by a
    percent a step makes each of them a little too large, and the errors multiply through the
    layers: validated so, a model that works looks broken (YOLOv5n on BCCD, 440 steps of
    `group_reg`: mAP50-95 .01 with the old statistics, .53 with fresh ones). They are taken from the
    epoch's last batches, as they were trained on, at least 128 images of them if it has as many.
    Training itself sees none of it.
    """

    main_only = True

    def __init__(self) -> None:
        self._recent: deque[Any] = deque()
        self._images = 0

    def on_epoch_start(self, trainer: TrainerState) -> None:
        """Nothing is kept of an epoch that began anew with a smaller batch."""
        self._forget()

    def on_batch_end(self, trainer: TrainerState) -> None:
        """Keep the last batches, as the loader gave them."""
        self._recent.append(trainer.data)
        self._images += len(trainer.data.images)
        while self._images - len(self._recent[0].images) >= FRESH_IMAGES:
            self._images -= len(self._recent.popleft().images)

    def on_train_epoch_end(self, trainer: TrainerState) -> None:
        """Before validation and checkpoint."""
        recalibrate_bn(trainer.ema.model, self._recent, len(self._recent))
        self._forget()

    def _forget(self) -> None:
        self._recent.clear()
        self._images = 0

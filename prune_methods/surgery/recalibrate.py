"""Fresh batch norm statistics for models whose weights have changed.

Statistics of the uncut model do not fit the pruned one, and running statistics lag behind weights
that shrink fast in sparse training.
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
    """Replace the running statistics by their plain average over a few batches, in place.

    Weights do not change. Only batch norms run in train mode; modes and momenta are restored.

    Args:
        model: the model.
        loader: batches with `.images`, uint8 (N, 3, H, W).
        batches: batches to use at most.

    Returns:
        The number of batches used; with 0 the model does not change.
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
                    norm.momentum = None  # torch then takes a cumulative average
                    norm.train()
            model(unit_range(batch.images.to(device)))
            used += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return used


class FreshStatistics(Hook):
    """Recalibrate the averaged (EMA) model at the end of each epoch of sparse training.

    Running statistics describe the weights of some dozens of steps ago. A penalty that shrinks
    weights by a percent a step makes each statistic a little too large, and the errors multiply
    through the layers, so that validation reports a working model as broken (YOLOv5n on BCCD, 440
    steps of `group_reg`: mAP50-95 .01 with the old statistics, .53 with fresh ones).

    Fresh statistics come from the last batches of the epoch, as they were trained on: at least 128
    images, or the whole epoch if shorter. The model in training does not change.
    """

    main_only = True

    def __init__(self) -> None:
        self._recent: deque[Any] = deque()
        self._images = 0

    def on_epoch_start(self, trainer: TrainerState) -> None:
        """Forget the batches of an epoch that starts again with a smaller batch size."""
        self._forget()

    def on_batch_end(self, trainer: TrainerState) -> None:
        """Keep the batch, and drop old ones that `FRESH_IMAGES` does not need."""
        self._recent.append(trainer.data)
        self._images += len(trainer.data.images)
        while self._images - len(self._recent[0].images) >= FRESH_IMAGES:
            self._images -= len(self._recent.popleft().images)

    def on_train_epoch_end(self, trainer: TrainerState) -> None:
        """Recalibrate before validation and checkpoint."""
        recalibrate_bn(trainer.ema.model, self._recent, len(self._recent))
        self._forget()

    def _forget(self) -> None:
        self._recent.clear()
        self._images = 0

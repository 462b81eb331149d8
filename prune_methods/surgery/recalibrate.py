"""Fresh batch norm statistics for models whose weights have changed.

Statistics of the uncut model do not fit the pruned one, and running statistics lag behind weights
that shrink fast in sparse training.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
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


def renew_bn(model: nn.Module, images: Tensor) -> None:
    """Take the statistics of images at every batch norm, in place; the function in eval mode stays.

    Scale and shift change with the statistics, so that train mode begins with the function of eval
    mode. A batch norm that runs twice keeps the statistics of its first call.

    Args:
        model: the model.
        images: (N, 3, H, W) in 0..1, in one pass.
    """
    seen: set[nn.Module] = set()

    def once(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        if norm not in seen:
            seen.add(norm)
            renew(norm, inputs)

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    handles = [norm.register_forward_pre_hook(once) for norm in norms]
    with evaluating(model), torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()


def renew(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """Take the statistics of what arrives at a batch norm; its function in eval mode stays.

    A forward pre-hook, under `no_grad`. A norm without statistics or without scale is left alone.
    """
    if norm.running_mean is None or norm.weight is None:
        return
    z = inputs[0]
    every = [dim for dim in range(z.dim()) if dim != 1]
    var, mean = torch.var_mean(z, every, correction=0)
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * gain
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    norm.weight.copy_(gain * torch.sqrt(var + norm.eps))
    norm.bias.copy_(shift + mean * gain)


class FreshStatistics(Hook):
    """Recalibrate the averaged (EMA) model at the end of each epoch.

    Running statistics describe the weights of some dozens of steps ago. A penalty that shrinks
    weights by a percent a step makes each statistic a little too large, and the errors multiply
    through the layers, so that validation reports a working model as broken (YOLOv5n on BCCD, 440
    steps of `group_reg`: mAP50-95 .01 with the old statistics, .53 with fresh ones). The finetune
    of a cut moves weights as fast at its begin (aquarium, epoch 7 of 40: .10 and .16).

    Fresh statistics come from the last batches of the epoch, as they were trained on: at least 128
    images, or the whole epoch if shorter. The model in training does not change.
    """

    main_only = True

    def __init__(self, until: float = 1.0):
        """Recalibrate in the first part of a run, as long as `until`, 0..1.

        Where the learning rate is low at the end of a run, running statistics are the better ones:
        they are a mean over more images.
        """
        self.until = until
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
        if trainer.epoch < self.until * trainer.epochs:
            recalibrate_bn(trainer.ema.model, self._recent, len(self._recent))
        self._forget()

    def _forget(self) -> None:
        self._recent.clear()
        self._images = 0

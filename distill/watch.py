"""Columns of every epoch that say whether distillation works, and a warning where it cannot."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.adapters import Adapter
from distill.base import FLAT
from distill.task import DistillTask
from utils.engine.hooks import Hook, TrainerState
from utils.engine.modes import evaluating
from utils.log import LOGGER

TINY = torch.finfo(torch.float64).tiny
CHANCE = 0.05  # share of the teacher's variance below which a pair has next to nothing in common


class Watch(Hook):
    """Measure distillation on the last batch of each epoch, in eval mode; change nothing.

    Columns:

    - `kd/explained_<layer>`: share of the variance of the teacher's channels that the student's
      adapted channels explain, each by its own: the mean of r squared, 0..1.
    - `kd/moved`: change of the adapters' weights since the last epoch, relative to their size.
    - `kd/gradient`: norm of the gradient of distillation in the student, as it is added, over that
      of detection.
    - `kd/clip`: mean factor by which the student's gradients were clipped, 0..1.
    """

    main_only = True

    def __init__(self) -> None:
        self._row: dict[str, float] = {}
        self._kernels: list[Tensor] = []
        self._warned = False

    def on_train_epoch_end(self, trainer: TrainerState) -> None:
        """Measure; warn once of pairs that have nothing in common."""
        task = trainer.task
        assert isinstance(task, DistillTask)
        self._row = {"kd/clip": trainer.mean_clip()}
        if not task.computes:
            return
        targets = trainer.data.targets.to(trainer.device)
        with evaluating(task), trainer.precision.autocast():
            shares, ratio = measured(task, trainer.images, targets)
        self._row |= {f"kd/explained_{name}": share for name, share in shares.items()}
        self._row |= {"kd/gradient": ratio} | self._moved(task)
        self._warn(shares)

    def metrics(self) -> dict[str, float]:
        """Return the columns of the epoch."""
        return self._row

    def state_dict(self) -> dict[str, Any]:
        """Return the adapters' weights at the end of the epoch, and whether a warning was given."""
        return {"kernels": self._kernels, "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of an interrupted run."""
        self._kernels, self._warned = list(state["kernels"]), state["warned"]

    def _moved(self, task: DistillTask) -> dict[str, float]:
        """Return how far the adapters moved since the last epoch; nothing for the first one."""
        new = [kernel.detach().cpu().clone() for kernel in kernels_of(task.adapters)]
        old, self._kernels = self._kernels, new
        if not new or len(old) != len(new):
            return {}
        change = sum(float((a - b).square().sum()) for a, b in zip(new, old, strict=True))
        size = sum(float(b.square().sum()) for b in old)
        return {"kd/moved": (change / max(size, FLAT)) ** 0.5}

    def _warn(self, shares: dict[str, float]) -> None:
        poor = [name for name, share in shares.items() if share < CHANCE]
        if poor and not self._warned:
            self._warned = True
            LOGGER.warning(
                f"--feature-loss: at layer {', '.join(poor)} the student's features explain less"
                f" than {CHANCE:.0%} of the teacher's variance, about as much as chance; other"
                " layers, --adapter closed-form, or a logit loss would teach more"
            )


def measured(task: DistillTask, images: Tensor, targets: Tensor) -> tuple[dict[str, float], float]:
    """Return the explained share by the student's layer, and the ratio of the gradients.

    Args:
        task: The task, in eval mode.
        images: Batch (N, 3, H, W) in 0..1.
        targets: Labels (M, 6) of the batch.
    """
    weights = [p for p in task.model.parameters() if p.requires_grad]
    seeds = torch.random.fork_rng(devices=[] if images.device.type == "cpu" else [images.device])
    with seeds:
        with task.feature_hooks.reading() as maps:
            raw = task.model(images).raw
        terms = task.distillation(images, raw, maps)
    added = task.weighted(terms) * task.factor * len(images)
    balance = getattr(task.loss, "balance", None)  # autobalance moves it
    detection, _ = task.loss(raw, targets)
    if balance is not None:
        task.loss.balance = balance  # type: ignore[attr-defined]
    ours, theirs = (_norm(loss, weights) for loss in (added, detection))
    pairs = task.aligned(maps, task.teacher(images)[1])
    names = task.feature_hooks.names
    shares = {name: explained(*pair) for name, pair in zip(names, pairs, strict=True)}
    return shares, ours / max(theirs, FLAT)


@torch.no_grad()
def explained(student: Tensor, teacher: Tensor) -> float:
    """Return the mean squared correlation of the channels of two maps (N, C, H, W), 0..1.

    Channels of the teacher that do not vary are left out; one of the student explains nothing.
    """
    s, t = (m.double().transpose(0, 1).flatten(1) for m in (student, teacher))
    s, t = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    ours, theirs = s.square().sum(1), t.square().sum(1)
    shares = (s * t).sum(1).square() / (ours * theirs).clamp(min=TINY)
    varied = theirs > FLAT * theirs.max()
    return float(shares[varied].mean()) if varied.any() else 0.0


def kernels_of(adapters: nn.ModuleList) -> Sequence[Tensor]:
    """Return the weights of the adapters that have any."""
    found = [adapter.kernel for adapter in adapters if isinstance(adapter, Adapter)]
    return [kernel for kernel in found if kernel is not None]


def _norm(loss: Tensor, weights: Sequence[Tensor]) -> float:
    """Return the norm of a loss's gradient; the graph stays."""
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    return float(nn.utils.get_total_norm(found))

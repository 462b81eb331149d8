"""Optimizers with YOLO's parameter groups, and the schedule of learning rate, momentum and
accumulation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from utils.config import Hyp
from utils.errors import UserError

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
MIN_WARMUP_BATCHES = 100


def parameter_groups(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters, in YOLOv5's order: `bias`, `decay` (weights, with weight decay),
    `no_decay` (norms, implicits).

    A module with a true attribute `decay_free` has its weights in `no_decay` too: something else
    already shrinks them.
    """
    groups: dict[str, list[nn.Parameter]] = {"bias": [], "decay": [], "no_decay": []}
    seen: set[int] = set()
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if name == "bias":
                groups["bias"].append(parameter)
            elif (
                name == "implicit"
                or isinstance(owner, NORMS)
                or getattr(owner, "decay_free", False)
            ):
                groups["no_decay"].append(parameter)
            else:
                groups["decay"].append(parameter)
    return groups


def accumulation(nominal: int, batch_size: int) -> int:
    """Batches whose gradients are summed before a step: as near the nominal batch as whole batches
    come, at least 1.
    """
    return max(round(nominal / batch_size), 1)


def build_optimizer(module: nn.Module, name: str, hyp: Hyp, batch_size: int) -> Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW over three groups (`bias`, `decay`, `no_decay`).

    `hyp.weight_decay` is meant at the nominal batch and scaled by the batch that really makes a
    step. The fused kernels are used on every device because they can skip a step by a flag that
    never leaves the device (`found_inf`).
    """
    decay = hyp.weight_decay * batch_size * accumulation(hyp.nbs, batch_size) / hyp.nbs
    groups = [
        {"params": parameters, "name": group, "weight_decay": decay if group == "decay" else 0.0}
        for group, parameters in parameter_groups(module).items()
    ]
    if not any(group["params"] for group in groups):
        raise UserError("--freeze: every parameter is frozen, nothing is left to train")
    if name == "SGD":
        return _sgd(groups, hyp)
    kinds: dict[str, type[Optimizer]] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    if name not in kinds:
        raise UserError(f"--optimizer: '{name}' is not known (SGD, Adam or AdamW)")
    return kinds[name](groups, lr=hyp.lr0, betas=(hyp.momentum, 0.999), fused=True)  # type: ignore[call-arg]


def _sgd(groups: list[dict], hyp: Hyp) -> Optimizer:
    nesterov = hyp.momentum > 0
    optimizer = torch.optim.SGD(
        groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=nesterov, fused=True
    )
    # A first step that is skipped would leave the fused kernel's momentum uninitialised; from zero
    # the first step is the same.
    for parameter in (p for group in groups for p in group["params"] if nesterov):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def linear(lrf: float, epochs: int) -> Callable[[int], float]:
    """Factor on lr0: a straight line from 1 at epoch 0 towards `lrf` at the end."""
    return lambda epoch: 1 - epoch / epochs * (1 - lrf)


def cosine(lrf: float, epochs: int) -> Callable[[int], float]:
    """Factor on lr0: half a cosine wave from 1 to `lrf` (SGDR, Loshchilov & Hutter 2017, without
    restarts).
    """
    return lambda epoch: _half_cosine(1.0, lrf, epoch / epochs)


def one_cycle(
    lrf: float, epochs: int, rise: float = 0.3, start: float = 0.04
) -> Callable[[int], float]:
    """Factor on lr0: up from `start` over the first `rise` of the run, then down to `lrf` (Smith &
    Topin 2018).
    """

    def factor(epoch: int) -> float:
        progress = epoch / epochs
        if progress < rise:
            return _half_cosine(start, 1.0, progress / rise)
        return _half_cosine(1.0, lrf, (progress - rise) / (1 - rise))

    return factor


def _half_cosine(begin: float, end: float, progress: float) -> float:
    return begin + (end - begin) * (1 - math.cos(math.pi * progress)) / 2


SCHEDULES = {"linear": linear, "cosine": cosine, "one-cycle": one_cycle}


@dataclass(frozen=True)
class StepConfig:
    """What holds for one batch.

    `lrs` is in the order of the optimizer's groups; `accumulate` counts batches a step.
    """

    lrs: tuple[float, ...]
    momentum: float
    accumulate: int


class Schedule:
    """Learning rates, momentum and accumulation of any batch as a function of its number, so that
    resuming needs no state.

    Warm-up is linear per batch: bias from `warmup_bias_lr`, the others from 0, momentum from
    `warmup_momentum`, accumulation from 1. It lasts `warmup_epochs`. As in YOLOv5 it lasts at least
    100 batches, but here never longer for that reason than a third of the run (a tiny run would be
    all warm-up), and `warmup_epochs: 0` really means none.
    """

    def __init__(
        self,
        hyp: Hyp,
        *,
        epochs: int,
        batches: int,
        batch_size: int,
        kind: str = "linear",
        nominal: int | None = None,
    ):
        """`batches` an epoch; `batch_size` over all ranks; `nominal` replaces `hyp.nbs` as the
        batch to accumulate to.
        """
        self.hyp = hyp
        self.batches = batches
        self.accumulate = accumulation(nominal or hyp.nbs, batch_size)
        self.factor = SCHEDULES[kind](hyp.lrf, epochs)
        self.warmup = round(hyp.warmup_epochs * batches)
        if self.warmup:
            self.warmup = max(self.warmup, min(MIN_WARMUP_BATCHES, epochs * batches // 3))

    def at(self, batch: int) -> StepConfig:
        """The setting of a batch, counted from the start of training."""
        lr = self.hyp.lr0 * self.factor(batch // self.batches)
        if batch >= self.warmup:
            return StepConfig((lr, lr, lr), self.hyp.momentum, self.accumulate)
        part = batch / self.warmup
        bias_lr = self.hyp.warmup_bias_lr + (lr - self.hyp.warmup_bias_lr) * part
        momentum = self.hyp.warmup_momentum + (self.hyp.momentum - self.hyp.warmup_momentum) * part
        return StepConfig(
            (bias_lr, lr * part, lr * part),
            momentum,
            max(round(1 + (self.accumulate - 1) * part), 1),
        )


def apply_step_config(optimizer: Optimizer, setting: StepConfig) -> None:
    """Put a setting's learning rates and, for SGD, its momentum into the optimizer (Adam's beta1
    stays, as in YOLOv5).
    """
    for group, lr in zip(optimizer.param_groups, setting.lrs, strict=True):
        group["lr"] = lr
        if "momentum" in group:
            group["momentum"] = setting.momentum

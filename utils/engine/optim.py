"""Optimizers with YOLO's parameter groups, and the schedule of a run.

The schedule gives learning rates, momentum and accumulation of every batch.
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
    """Return the trainable parameters by group, in YOLOv5's order.

    The groups are `bias`, `decay` (weights, with weight decay) and `no_decay` (norms, implicit
    vectors). A module with a true attribute `decay_free` has its weights in `no_decay` too:
    something else already shrinks them. Parameters of `trained_apart` are left out.
    """
    groups: dict[str, list[nn.Parameter]] = {"bias": [], "decay": [], "no_decay": []}
    seen = {id(parameter) for parameter in trained_apart(module)}
    for owner in module.modules():
        free = isinstance(owner, NORMS) or getattr(owner, "decay_free", False)
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if name == "bias":
                groups["bias"].append(parameter)
            elif free or name == "implicit":
                groups["no_decay"].append(parameter)
            else:
                groups["decay"].append(parameter)
    return groups


def trained_apart(module: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters that have an optimizer of their own.

    These are the parameters below submodules with a true attribute `trained_apart`.
    """
    owners = [child for child in module.modules() if getattr(child, "trained_apart", False)]
    found = {id(p): p for owner in owners for p in owner.parameters() if p.requires_grad}
    return list(found.values())


def accumulation(nominal: int, batch_size: int) -> int:
    """Return the number of batches whose gradients are summed before a step, at least 1.

    Their images come as near to the nominal batch as whole batches can.
    """
    return max(round(nominal / batch_size), 1)


def build_optimizer(module: nn.Module, name: str, hyp: Hyp, batch_size: int) -> Optimizer:
    """Return SGD with Nesterov momentum, Adam or AdamW over the three groups of a module.

    `hyp.weight_decay` holds for the nominal batch `hyp.nbs` and is scaled by the number of images
    that really make a step. The fused kernels are used on every device because they can skip a step
    by a flag that never leaves the device (`found_inf`).

    Args:
        module: Module whose parameters are trained.
        name: SGD, Adam or AdamW.
        hyp: Learning rate, momentum, weight decay and nominal batch.
        batch_size: Images of a batch over all ranks.

    Raises:
        UserError: Every parameter is frozen, or the name is unknown.
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
    if nesterov:
        # A skipped first step would leave the fused kernel's momentum uninitialised; from zero the
        # first step is the same.
        for parameter in (p for group in groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def linear(lrf: float, epochs: int) -> Callable[[int], float]:
    """Return the factor on lr0 by epoch: a straight line from 1 at epoch 0 to `lrf` at the end."""
    return lambda epoch: 1 - epoch / epochs * (1 - lrf)


def cosine(lrf: float, epochs: int) -> Callable[[int], float]:
    """Return the factor on lr0 by epoch: half a cosine wave from 1 to `lrf`.

    SGDR (Loshchilov & Hutter 2017) without restarts.
    """
    return lambda epoch: _half_cosine(1.0, lrf, epoch / epochs)


def one_cycle(
    lrf: float, epochs: int, rise: float = 0.3, start: float = 0.04
) -> Callable[[int], float]:
    """Return the factor on lr0 by epoch: half a cosine wave up to 1, another one down to `lrf`.

    Super-convergence (Smith & Topin 2018).

    Args:
        lrf: Factor at the end.
        epochs: Length of the run.
        rise: Share of the run in which the factor rises.
        start: Factor at the beginning.
    """

    def factor(epoch: int) -> float:
        progress = epoch / epochs
        if progress < rise:
            return _half_cosine(start, 1.0, progress / rise)
        return _half_cosine(1.0, lrf, (progress - rise) / (1 - rise))

    return factor


def _half_cosine(begin: float, end: float, progress: float) -> float:
    """Return the value at `progress` (0 to 1) of half a cosine wave from `begin` to `end`."""
    return begin + (end - begin) * (1 - math.cos(math.pi * progress)) / 2


SCHEDULES = {"linear": linear, "cosine": cosine, "one-cycle": one_cycle}


@dataclass(frozen=True)
class StepConfig:
    """Setting of one batch.

    Args:
        lrs: Learning rates, in the order of the optimizer's groups.
        momentum: Momentum of SGD.
        accumulate: Number of batches in an optimizer step.
    """

    lrs: tuple[float, ...]
    momentum: float
    accumulate: int


class Schedule:
    """Learning rates, momentum and accumulation of a batch as a function of its number.

    Resuming needs no state for that reason.

    Warm-up is linear in the batches: the learning rate of the biases starts at `warmup_bias_lr`,
    the others at 0, momentum at `warmup_momentum`, accumulation at 1. Warm-up lasts
    `warmup_epochs`, and as in YOLOv5 at least 100 batches. Unlike there, this lower bound is at
    most a third of the run (a tiny run would be all warm-up), and `warmup_epochs: 0` means no
    warm-up.
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
        """Set up the schedule of a run.

        Args:
            hyp: Learning rates, momenta, warm-up and nominal batch.
            epochs: Length of the run.
            batches: Number of batches in an epoch.
            batch_size: Images of a batch over all ranks.
            kind: Key of `SCHEDULES`.
            nominal: Images to accumulate for a step; None: `hyp.nbs`.
        """
        self.hyp = hyp
        self.batches = batches
        self.accumulate = accumulation(nominal or hyp.nbs, batch_size)
        self.factor = SCHEDULES[kind](hyp.lrf, epochs)
        self.warmup = round(hyp.warmup_epochs * batches)
        if self.warmup:
            self.warmup = max(self.warmup, min(MIN_WARMUP_BATCHES, epochs * batches // 3))

    def at(self, batch: int) -> StepConfig:
        """Return the setting of a batch, counted from the start of training."""
        lr = self.hyp.lr0 * self.factor(batch // self.batches)
        if batch >= self.warmup:
            return StepConfig((lr, lr, lr), self.hyp.momentum, self.accumulate)
        hyp, part = self.hyp, batch / self.warmup
        bias_lr = hyp.warmup_bias_lr + (lr - hyp.warmup_bias_lr) * part
        momentum = hyp.warmup_momentum + (hyp.momentum - hyp.warmup_momentum) * part
        accumulate = max(round(1 + (self.accumulate - 1) * part), 1)
        return StepConfig((bias_lr, lr * part, lr * part), momentum, accumulate)


def apply_step_config(optimizer: Optimizer, setting: StepConfig) -> None:
    """Put a setting's learning rates and, for SGD, its momentum into the optimizer.

    Adam's beta1 stays as it is, as in YOLOv5.
    """
    for group, lr in zip(optimizer.param_groups, setting.lrs, strict=True):
        group["lr"] = lr
        if "momentum" in group:
            group["momentum"] = setting.momentum

"""Report at the start of a run whether distillation works.

The report names what is compared, and says whether gradient arrives, how large the share of
distillation is in the loss, and how much time distillation costs.
"""

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.task import DistillTask
from utils.engine.hooks import Hook, TrainerState
from utils.engine.modes import evaluating
from utils.log import LOGGER
from utils.profiling import count_parameters
from utils.timing import alternate

FIRST = 10  # number of batches from which share and time of a step are measured
MOST, LEAST, GOOD = 0.6, 0.01, 0.3  # shares of distillation in the whole loss


class Diagnostics(Hook):
    """Report on the first batches with distillation of a new run.

    The hook computes beside the training and changes nothing of it.
    """

    main_only = True

    def __init__(self) -> None:
        self._sums = torch.zeros(0)  # detection and each loss over the first batches, on the device
        self._seen = 0  # batches examined
        self._start = 0.0  # time at which the first batch has been examined, seconds
        self._extra = 0.0  # what distillation adds to a step, seconds
        self._factor = 1.0

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Log the size of the teacher and the names of the losses."""
        task = _task(trainer)
        LOGGER.info(
            f"Teacher: {count_parameters(task.teacher.model)} parameters, frozen; compared by"
            f" {', '.join(task.weights)}"
        )

    def on_batch_end(self, trainer: TrainerState) -> None:
        """Examine the first batch and sum up the first few; a resumed run was examined before."""
        task = _task(trainer)
        self._factor = task.factor
        first = min(FIRST, len(trainer.loader))
        begun = self._seen > 0 or task.number <= max(task.waiting, 1)
        if self._seen == first or not (task.computes and begun):
            return
        terms = _terms(task, trainer.parts)
        self._seen += 1
        if self._seen == 1:
            self._sums = torch.zeros_like(terms)
            report_pairs(task, trainer.images)
            report_gradient(task, trainer.images)
            self._extra = _extra_seconds(task, trainer)
            self._start = time.perf_counter()
        self._sums += terms
        if self._seen == first:
            self._conclude(task, first - 1, len(trainer.loader))

    def metrics(self) -> dict[str, float]:
        """Return the schedule's factor at the end of the epoch."""
        return {"kd/factor": self._factor}

    def _conclude(self, task: DistillTask, batches: int, per_epoch: int) -> None:
        """Log share and cost of distillation.

        Args:
            task: The task, for names and weights of its losses.
            batches: Number of batches since the first one.
            per_epoch: Number of batches of an epoch.
        """
        # `tolist` waits for the device, so that the time below is right
        detection, *values = self._sums.tolist()
        by_name = dict(zip(task.weights, values, strict=True))
        LOGGER.info("\n" + share_report(detection, by_name, task))
        if batches:
            step = (time.perf_counter() - self._start) / batches
            without = max(step - self._extra, 0.0)
            LOGGER.info(
                f"Cost: {step:.3g} s a step with the teacher, about {without:.3g} without; "
                f"{step * per_epoch:.3g} and {without * per_epoch:.3g} s an epoch"
            )


def report_pairs(task: DistillTask, images: Tensor) -> None:
    """Log each pair of layers with its shapes and the adapters made for it."""
    names = list(zip(task.feature_hooks.names, task.teacher.feature_hooks.names, strict=True))
    if not names:
        return
    size = max(images.shape[2:])
    shapes = zip(
        task.feature_hooks.shapes(size), task.teacher.feature_hooks.shapes(size), strict=True
    )
    for i, ((ours, theirs), (s, t)) in enumerate(zip(names, shapes, strict=True)):
        beside = [
            f"{name} {_layer_sizes(losses[i])}"
            for name, losses in task.features.items()
            if isinstance(losses, nn.ModuleList) and list(losses[i].parameters())
        ]
        adapter = f"{task.adapters[i]}".split("(")[0]
        trained = f"; trained beside: {', '.join(beside)}" if beside else ""
        LOGGER.info(f"Pair: student {ours} {s} - teacher {theirs} {t}; adapter {adapter}{trained}")


def report_gradient(task: DistillTask, images: Tensor) -> None:
    """Log whether the gradient of distillation alone reaches the student."""
    named = [(name, p) for name, p in task.model.named_parameters() if p.requires_grad]
    gradients = _gradients(task, images, [p for _, p in named], taught=True, detection=False)
    zero = torch.zeros((), device=images.device)
    norms = torch.stack([zero if g is None else g.norm() for g in gradients]).tolist()
    reached = [name for (name, _), norm in zip(named, norms, strict=True) if norm > 0]
    if reached:
        LOGGER.info(
            f"Gradient of distillation reaches {len(reached)} of the student's {len(named)} trained"
            " tensors"
        )
    else:
        LOGGER.warning(
            "no gradient of distillation reaches the student: it is frozen there, or equal to the"
            " teacher"
        )


def share_report(detection: float, values: Mapping[str, float], task: DistillTask) -> str:
    """Return a line on the share of distillation in the loss, before the schedule.

    Where the share is above 60 % or below 1 %, the line suggests weights that would make it 30 %.

    Args:
        detection: Sum of the detection loss over the first batches.
        values: Sum of each distillation loss times its weight over the same batches.
        task: The task, for names and weights of its losses.
    """
    taught = sum(values.values())
    whole = detection + taught
    share = taught / whole if whole else 0.0
    listed = ", ".join(
        f"{name} {value / whole if whole else 0:.1%}" for name, value in values.items()
    )
    text = f"Distillation is {share:.1%} of the loss over the first batches ({listed})"
    if LEAST <= share <= MOST:
        return text
    if not share:
        return f"{text}: student and teacher agree in all that is compared"
    factor = detection / taught * GOOD / (1 - GOOD)
    better = {name: f"{float(f'{weight * factor:.2g}'):g}" for name, weight in task.weights.items()}
    options = []
    if task.features:
        options.append(f"--feature-weight {' '.join(better[name] for name in task.features)}")
    if task.logit_name:
        options.append(f"--logit-weight {better[task.logit_name]}")
    what = "it may drown the labels" if share > MOST else "it will hardly do anything"
    return f"{text}: {what}; {' '.join(options)} would make it {GOOD:.0%}"


def _task(trainer: TrainerState) -> DistillTask:
    assert isinstance(trainer.task, DistillTask)
    return trainer.task


def _terms(task: DistillTask, parts: Mapping[str, Tensor]) -> Tensor:
    """Return detection (box + obj + cls) and each weighted distillation loss, (1 + losses,)."""
    taught = {"kd_logit", "kd_feature", *(f"raw_{name}" for name in task.weights)}
    detection = [value.float() for name, value in parts.items() if name not in taught]
    losses = [weight * parts[f"raw_{name}"].float() for name, weight in task.weights.items()]
    return torch.stack([torch.stack(detection).sum(), *losses])


def _gradients(
    task: DistillTask, images: Tensor, wanted: list[Tensor], *, taught: bool, detection: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients of one batch without disturbing the training.

    The model runs in eval mode, so that no statistic changes, and random generators are restored.
    The mean of the raw maps stands for the detection loss, which may have a state of its own.

    Args:
        task: The task whose losses are computed.
        images: Batch (N, 3, H, W) in 0..1.
        wanted: Parameters to differentiate by; the result has None for one that is not reached.
        taught: Add the weighted distillation losses.
        detection: Add the stand-in for the detection loss.
    """
    device = images.device
    seeds = torch.random.fork_rng(devices=[] if device.type == "cpu" else [device])
    with evaluating(task):
        with seeds:
            with task.feature_hooks.reading() as maps:
                _, raw = task.model(images)
            total = torch.zeros((), device=device)
            if taught:
                total = total + task.weighted(task.distillation(images, raw, maps))
            if detection:
                total = total + torch.stack([level.float().mean() for level in raw]).sum()
        return torch.autograd.grad(total, wanted, allow_unused=True)


def _extra_seconds(task: DistillTask, trainer: TrainerState) -> float:
    """Measure the seconds that teacher and distillation losses add to a step.

    Forward and backward passes with and without them run in turn; the fastest of each count.
    """
    wanted: list[Tensor] = [p for p in task.model.parameters() if p.requires_grad]

    def step(taught: bool) -> None:
        with trainer.precision.autocast():
            _gradients(task, trainer.images, wanted, taught=taught, detection=True)

    work = {"alone": lambda: step(False), "taught": lambda: step(True)}
    times = alternate(work, seconds=0, min_rounds=1, device=trainer.device)
    return min(times["taught"]) - min(times["alone"])


def _layer_sizes(module: nn.Module) -> str:
    """Name the trained layers of an adapter with their weight shapes, as `Conv2d 64x32x1x1`."""
    layers = [
        f"{type(m).__name__} {'x'.join(map(str, m.weight.shape))}"
        for m in module.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    return " + ".join(layers) or "nothing"

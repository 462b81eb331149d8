"""The one training loop.

The order of a step is fixed; tasks and hooks rely on it:

    every batch    autocast forward -> scale(loss).backward
    last of group  unscale -> hooks.on_grads_ready -> clip -> optimizer.step -> scaler.update
                   -> zero_grad -> EMA -> hooks.on_step_end

Losses are already multiplied by the batch size and are not divided by the number of accumulated
batches: gradients sum up to the nominal batch, as in YOLOv5. The last batch of an epoch always ends
in an optimizer step, so that a checkpoint needs no gradients.

The loop knows neither models nor data nor files: the caller hands over a task, a loader, and
functions for the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from utils.engine import dist
from utils.engine.device import free_gpu_memory
from utils.engine.hooks import TrainerState
from utils.engine.optim import apply_step_config
from utils.engine.precision import FiniteGuard
from utils.engine.seed import seed_everything
from utils.errors import UserError
from utils.images import unit_range

MAX_GRAD_NORM = 10.0
READ_EVERY = 10  # optimizer steps between two looks at the device's counters


def to_unit_range(images: Tensor, batch: int) -> Tensor:
    """Return uint8 images as float32 in 0..1: the default of `Trainer.prepare`."""
    return unit_range(images)


@dataclass
class Trainer(TrainerState):
    """The loop over the state of one training run, and the functions that it calls.

    `evaluate(model)` returns an object with `map50, map, mp, mr, losses, fitness`; only the main
    process calls it. `prepare(images, batch)` turns the loader's uint8 images into the network's
    input; `batch` counts over the whole run. `smaller_batch(state)` puts a loader and a schedule of
    half the batch into the state after the device ran out of memory, and returns whether it could.
    """

    evaluate: Callable[[torch.nn.Module], Any] | None = None
    validate_every_epoch: bool = True
    prepare: Callable[[Tensor, int], Tensor] = to_unit_range
    smaller_batch: Callable[[TrainerState], bool] | None = None

    def __post_init__(self) -> None:
        self.net = dist.data_parallel(self.task, self.world, self.device)
        self.guard = FiniteGuard([self.task, self.ema.model], self.precision)
        self._active = [hook for hook in self.hooks if self.world.main or not hook.main_only]
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        own = {id(parameter) for parameter in self.task.model.parameters()}
        self._of_model = [parameter for parameter in trained if id(parameter) in own]
        self._beside = [parameter for parameter in trained if id(parameter) not in own]
        self._waiting = 0  # batches whose gradients wait for a step

    def fit(self) -> None:
        """Train from the present epoch to the last one, or until a hook sets `stop`."""
        self._call("on_fit_start")
        first = self.epoch
        while self.epoch < self.epochs and not self.stop:
            if not self._train_epoch(may_shrink=self.epoch == first):
                continue
            self._end_epoch()
            self.epoch += 1
        self._call("on_fit_end")

    def _train_epoch(self, may_shrink: bool) -> bool:
        """Train one epoch; return False where the epoch has to begin again with a smaller batch.

        Args:
            may_shrink: Whether running out of memory may halve the batch; True for the first epoch.

        Raises:
            UserError: Memory ran out even with the smallest batch.
        """
        try:
            self._pass()
            return True
        except RuntimeError as error:
            if not (may_shrink and self.world.size == 1 and _out_of_memory(error)):
                raise
            reason = str(error).splitlines()[0]
        # The rest stands outside the handler: the traceback would still hold the batch's memory.
        self._zero_grad()
        self.data, self.images, self.parts = None, torch.empty(0), {}
        free_gpu_memory(self.device)
        if self.smaller_batch is None or not self.smaller_batch(self):
            raise UserError(
                f"out of memory even with the smallest batch: {reason}; a smaller --imgsz or model"
                " would fit"
            )
        return False

    def _pass(self) -> None:
        """Run over all batches of the loader once, from the seed of this epoch."""
        seed_everything(self.seed, self.epoch, self.world.rank)
        self.loader.set_epoch(self.epoch)
        self.task.train()
        self._sums, self._clips = torch.zeros(0), torch.zeros(2)
        self.skipped = 0
        self._call("on_epoch_start")
        for number, data in enumerate(self.loader):
            self.batch, self.data = number, data
            self._train_batch()
        self._read_guard()

    def _train_batch(self) -> None:
        """Run forward and backward on `self.data`; step where the group of batches is complete."""
        number = self.epoch * len(self.loader) + self.batch
        setting = self.schedule.at(number)
        self._waiting += 1
        last = self.batch + 1 == len(self.loader)
        steps = last or self._waiting >= setting.accumulate
        self.task.start_batch(number, self.epochs * len(self.loader))
        self.images = self.prepare(self.data.images.to(self.device, non_blocking=True), number)
        targets = self.data.targets.to(self.device, non_blocking=True)
        with dist.without_sync(self.net, not steps):
            with self.precision.autocast():
                parts = self.net(self.images, targets)
            self.precision.scaler.scale(parts["loss"]).backward()
        self._record(parts)
        if steps:
            apply_step_config(self.optimizer, setting)
            self._optimizer_step()
        self._call("on_batch_end")

    def _optimizer_step(self) -> None:
        self.precision.scaler.unscale_(self.optimizer)
        self._call("on_grads_ready")
        norm = self._clip()
        # The fused optimizers take this flag and leave everything as it is where it is 1.
        self.optimizer.found_inf = self.guard.flag(norm)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.precision.scaler.update()
        self._zero_grad()
        self.ema.update()
        self.step += 1
        if self.step % READ_EVERY == 0:
            self._read_guard()
        self._call("on_step_end")

    def _clip(self) -> Tensor:
        """Clip the gradient of the model; return the norm of all gradients before that.

        Layers trained beside the model are not clipped: neither slows the other down.
        """
        norm = clip_grad_norm_(self._of_model, MAX_GRAD_NORM)
        factor = (MAX_GRAD_NORM / norm).clamp(max=1).nan_to_num(0.0)
        self._clips = self._clips.to(norm) + torch.stack([factor, torch.ones_like(norm)])
        beside = [parameter.grad for parameter in self._beside if parameter.grad is not None]
        return torch.hypot(norm, get_total_norm(beside)) if beside else norm

    def _zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._waiting = 0

    def _record(self, parts: dict[str, Tensor]) -> None:
        """Keep the batch's named scalars and add their finite values to the epoch's sums."""
        self.parts = {name: value.detach() for name, value in parts.items() if name != "loss"}
        values = torch.stack([value.float() for value in self.parts.values()])
        finite = values.isfinite()
        if not len(self._sums):
            self._sums = values.new_zeros(2, len(values))
        self._sums.add_(torch.stack([values.where(finite, 0.0), finite.float()]))

    def _read_guard(self) -> None:
        """Read the guard's counters; stop training where too many steps in a row were not finite.

        Raises:
            UserError: Names the step, the epoch and the loss term.
        """
        streak, bad = self.guard.read()
        self.skipped += bad
        if streak < self.guard.limit:
            return
        terms = [name for name, value in self.parts.items() if not value.isfinite()]
        if terms:
            what = f"the loss term {' and '.join(terms)} is"
        else:
            what = "the losses are finite, but their gradient is"
        raise UserError(
            f"training stopped at step {self.step} (epoch {self.epoch}): {what} not a finite number"
            f" in {streak} steps in a row; check the labels, or try a lower lr0 or --amp off"
        )

    def _end_epoch(self) -> None:
        """Validate, put the epoch's line together, call the hooks and share `stop` among ranks."""
        self._call("on_train_epoch_end")
        self._sums = dist.sum_over_ranks(self._sums, self.world)
        if self.world.main:
            self._validate()
            lrs = {f"x/lr{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
            losses = {f"train/{name}": value for name, value in self.mean_parts().items()}
            self.row = {"epoch": self.epoch, **losses, **self._metrics(), **lrs}
            for hook in self._active:
                self.row |= hook.metrics()
            self.history.append(self.row)
        self._call("on_epoch_end")
        self.stop = dist.broadcast(self.stop, self.world)

    def _validate(self) -> None:
        """Validate the averaged model where this epoch is due, and compare its fitness."""
        self.result = None
        due = self.validate_every_epoch or self.epoch + 1 == self.epochs
        if self.evaluate is not None and due:
            self.result = self.evaluate(self.ema.model)
        fitness = self.best_fitness if self.result is None else float(self.result.fitness)
        # The later of equals is the best: while all are 0 the weights still get better.
        self.is_best = fitness >= self.best_fitness
        self.best_fitness = max(fitness, self.best_fitness)

    def _metrics(self) -> dict[str, float]:
        """Return the validation's columns of `results.csv`; empty where it was left out."""
        if self.result is None:
            return {}
        found = self.result
        metrics = {
            "precision": found.mp,
            "recall": found.mr,
            "mAP_0.5": found.map50,
            "mAP_0.5:0.95": found.map,
        }
        losses = {f"val/{name}": float(value) for name, value in found.losses.items()}
        return {f"metrics/{name}": float(value) for name, value in metrics.items()} | losses

    def _call(self, event: str) -> None:
        """Call the method `event` of all hooks of this rank, in their order."""
        for hook in self._active:
            getattr(hook, event)(self)


def _out_of_memory(error: RuntimeError) -> bool:
    """Tell running out of memory from other errors.

    GPU allocators raise `OutOfMemoryError`; the CPU's allocator raises a plain RuntimeError.
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

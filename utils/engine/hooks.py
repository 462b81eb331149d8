"""The state of a training run, and the hooks that are called around its steps.

A hook sees the state and may read or change all of it; the loop in `utils.engine.trainer` knows no
hook by name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from utils.engine import dist
from utils.engine.ema import ModelEMA
from utils.engine.optim import Schedule
from utils.engine.precision import Precision
from utils.engine.tasks import Task
from utils.errors import UserError, brief

DAMAGED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors that a state raises which someone has edited."""


class Loader(Protocol):
    """Data loader as the loop needs one.

    A batch has `.images` (uint8, (N, 3, H, W)) and `.targets` ((M, 6) = image, class, x, y, w, h).
    """

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int) -> None: ...  # noqa: D102


@dataclass
class TrainerState:
    """State of one training run: what hooks may read and change.

    The first ten fields are given, `seed` the last of them; the loop keeps the others up to date.
    """

    task: Task
    loader: Loader
    optimizer: Optimizer
    schedule: Schedule
    ema: ModelEMA
    epochs: int
    precision: Precision
    hooks: Sequence["Hook"] = ()
    world: dist.World = field(default_factory=dist.World)
    seed: int = 0

    epoch: int = field(init=False, default=0)
    """Number of the running epoch, from 0."""
    batch: int = field(init=False, default=0)
    """Number of the batch within the epoch, from 0."""
    step: int = field(init=False, default=0)
    """Number of optimizer steps done, skipped steps included."""
    skipped: int = field(init=False, default=0)
    """Number of steps skipped in this epoch because a gradient was not finite."""
    stop: bool = field(init=False, default=False)
    """Set by a hook: end the run after this epoch."""
    parts: dict[str, Tensor] = field(init=False, default_factory=dict)
    """Named scalars of the last batch, detached, on the device."""
    data: Any = field(init=False, default=None)
    """The last batch as the loader gave it."""
    images: Tensor = field(init=False, default_factory=lambda: torch.empty(0))
    """Images of the last batch as the network saw them: float, (N, 3, H, W), on the device."""
    row: dict[str, float] = field(init=False, default_factory=dict)
    """The epoch's line of `results.csv`."""
    history: list[dict[str, float]] = field(init=False, default_factory=list)
    """The lines of all epochs up to now."""
    result: Any = field(init=False, default=None)
    """Result of the last validation; None where the epoch was not validated."""
    best_fitness: float = field(init=False, default=float("-inf"))
    """Best fitness up to now."""
    is_best: bool = field(init=False, default=False)
    """True where no earlier epoch has a higher fitness than this one."""
    _sums: Tensor = field(init=False, default_factory=lambda: torch.zeros(0))
    """(2, parts): sums of the epoch's finite `parts`, and how many were finite."""

    _clips: Tensor = field(init=False, default_factory=lambda: torch.zeros(2))
    """(2,): sum of the epoch's clipping factors of the model's gradient, and their number."""

    @property
    def device(self) -> torch.device:
        """Device that the run computes on."""
        return self.precision.device

    def mean_parts(self) -> dict[str, float]:
        """Return the means of the epoch's named scalars up to now, without non-finite values.

        Waits for the device.
        """
        sums, counts = self._sums
        means = (sums / counts.clamp(min=1)).tolist()
        return dict(zip(self.parts, means, strict=True))

    def mean_clip(self) -> float:
        """Return the mean factor, 0..1, by which clipping shortened the gradients of the epoch.

        Waits for the device.
        """
        total, steps = self._clips.tolist()
        return total / max(steps, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on after this epoch needs, as plain data and tensors.

        Generator states are left out: generators are seeded from (seed, epoch, rank) at each epoch.
        """
        return {
            "task": self.task.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best_fitness": self.best_fitness,
            "history": self.history,
            "stop": self.stop,
            "hooks": [hook.state_dict() for hook in self.hooks],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the epoch at whose end `state_dict` was called.

        The hooks must be the same, in the same order.

        Raises:
            UserError: The number of hooks differs, so another version wrote the state; nothing has
                been changed then. Or the state is damaged.
        """
        try:
            self._load(state)
        except UserError:
            raise
        except DAMAGED as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"this run cannot be resumed: its train_state is damaged or edited: {reason}; start"
                " a new run from its weights: --weights"
            ) from None

    def _load(self, state: dict[str, Any]) -> None:
        """Take the state over; see `load_state_dict`."""
        kinds = {"ema_updates": int, "epoch": int, "step": int, "stop": bool, "best_fitness": float}
        for name, kind in kinds.items():
            if not isinstance(state[name], kind):
                raise TypeError(f"{name} is {brief(state[name])}")
        if state["history"] != [row for row in state["history"] if isinstance(row, dict)]:
            raise TypeError(f"history is {brief(state['history'])}")
        if len(state["hooks"]) != len(self.hooks):
            raise UserError(
                f"this run cannot be resumed: written with {len(state['hooks'])} hooks, this"
                f" program has {len(self.hooks)}; resume it with the version that started it, or"
                " start a new run from its weights: --weights"
            )
        self.task.load_state_dict(state["task"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        _check_shapes(self.optimizer)
        if state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.stop = state["epoch"] + 1, state["step"], state["stop"]
        self.best_fitness, self.history = state["best_fitness"], list(state["history"])
        for hook, hook_state in zip(self.hooks, state["hooks"], strict=True):
            _check_numbers(hook.state_dict(), hook_state)
            hook.load_state_dict(hook_state)


def _check_shapes(optimizer: Optimizer) -> None:
    """Raise ValueError where a loaded state of the optimizer does not fit its parameter."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            whole = isinstance(value, Tensor) and value.dim() > 0
            if whole and value.shape != parameter.shape:
                shape = list(parameter.shape)
                raise ValueError(f"optimizer: {name} has another shape than its parameter, {shape}")


def _check_numbers(own: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise TypeError where a hook has a number that its stored state has something else for."""
    for name, value in own.items():
        if isinstance(value, int | float) and not isinstance(stored[name], int | float):
            raise TypeError(f"hooks: {name} is {brief(stored[name])}")


class Hook:
    """Base of all hooks: override the methods of the moments to act at.

    Hooks are called in the order in which they were given.
    """

    main_only = False
    """Whether only the main process calls the hook (logging); other hooks run on every rank."""

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Act before the first epoch, after a resumed state is in place."""

    def on_epoch_start(self, trainer: TrainerState) -> None:
        """Act before the first batch: `trainer.epoch` is set, the model is in train mode."""

    def on_batch_end(self, trainer: TrainerState) -> None:
        """Act after each batch's forward and backward pass, and its step where it has one.

        `trainer.parts` are the batch's named scalars, on the device.
        """

    def on_grads_ready(self, trainer: TrainerState) -> None:
        """Act once in an optimizer step, between unscale and clip.

        Gradients are in true scale, summed over the accumulated batches.
        """

    def on_step_end(self, trainer: TrainerState) -> None:
        """Act after optimizer step, zero_grad and EMA; `trainer.step` counts this step already."""

    def on_train_epoch_end(self, trainer: TrainerState) -> None:
        """Act after the epoch's last step, before validation.

        A change of the averaged model here changes what is validated and saved.
        """

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """Act after validation; `trainer.row` is the epoch's line of `results.csv`.

        The checkpoint is the last hook, so the others act before it is written.
        """

    def on_fit_end(self, trainer: TrainerState) -> None:
        """Act after the last epoch."""

    def metrics(self) -> dict[str, float]:
        """Return further columns of `results.csv` for the epoch that just ended."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the plain data and tensors that an exact resume needs; they go into `last.pt`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

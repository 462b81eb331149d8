"""The optimizer of the layers that are trained beside the student, whatever their loss weighs."""

from typing import Any

from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim import AdamW

from utils.engine.hooks import Hook, TrainerState
from utils.engine.optim import trained_apart

LR = 2e-3


class TrainApart(Hook):
    """Train the task's layers with a true `trained_apart` by AdamW, step by step with the student.

    The steps of Adam do not depend on the size of a gradient, so neither the weight of the loss nor
    the schedule slows these layers. A step whose gradient is not finite is left out.
    """

    def __init__(self) -> None:
        self._weights: list[nn.Parameter] = []
        self._optimizer: AdamW | None = None
        self._stored: dict[str, Any] = {}

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Make the optimizer, with the state of an interrupted run."""
        self._weights = trained_apart(trainer.task)
        if not self._weights:
            return
        self._optimizer = AdamW(self._weights, lr=LR, fused=True)
        if self._stored:
            self._optimizer.load_state_dict(self._stored)

    def on_grads_ready(self, trainer: TrainerState) -> None:
        """Take a step."""
        if self._optimizer is None:
            return
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if gradients:
            trainer.precision.scaler.unscale_(self._optimizer)
            norm = get_total_norm(gradients)
            self._optimizer.found_inf = 1 - norm.isfinite().float()  # type: ignore[attr-defined]
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer; empty where nothing is trained apart."""
        return {} if self._optimizer is None else self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state for `on_fit_start`, which makes the optimizer."""
        self._stored = state

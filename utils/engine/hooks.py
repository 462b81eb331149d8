"""What happens around a step.

A hook sees the trainer and may read or change all of it; the trainer knows no hook by name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.engine.trainer import Trainer


class Hook:
    """Base of all hooks: override what you need.

    Hooks run in the order in which they were given.
    """

    main_only = False  # True: only the main process needs it (logging); others run on every rank

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Before the first epoch, after a resumed state is in place."""

    def on_epoch_start(self, trainer: "Trainer") -> None:
        """`trainer.epoch` is set, the model is in train mode."""

    def on_batch_end(self, trainer: "Trainer") -> None:
        """After each forward and backward; `trainer.parts` are this batch's named scalars, on the
        device.
        """

    def on_grads_ready(self, trainer: "Trainer") -> None:
        """Once an optimizer step, between unscale and clip: gradients are in true scale, summed
        over the accumulated batches.
        """

    def on_step_end(self, trainer: "Trainer") -> None:
        """After optimizer step, zero_grad and EMA; `trainer.step` counts optimizer steps."""

    def on_train_epoch_end(self, trainer: "Trainer") -> None:
        """After the epoch's last step, before validation: what changes the averaged model changes
        what is validated and saved.
        """

    def on_epoch_end(self, trainer: "Trainer") -> None:
        """After validation, before the checkpoint; `trainer.row` is the epoch's line of
        results.csv.
        """

    def on_fit_end(self, trainer: "Trainer") -> None:
        """After the last epoch."""

    def metrics(self) -> dict[str, float]:
        """Further columns of `results.csv` for the epoch that just ended."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors that an exact resume needs; goes into `last.pt`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

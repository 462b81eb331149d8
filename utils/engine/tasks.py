"""Tasks: a task wraps a model and its losses and returns named scalars."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Task(nn.Module):
    """A model with its loss: `forward(images, targets)` returns named scalars.

    The scalar `loss` is backpropagated; every other one is detached and becomes `train/<key>` in
    `results.csv` and a field of the progress bar. A task multiplies `loss` by the number of ranks
    itself, since data-parallel training averages gradients over the ranks.

    A module trained beside the model (an adapter) is a submodule of the task: it reaches the
    optimizer and the resume state, never the exported model.
    """

    model: nn.Module

    def start_batch(self, number: int, total: int) -> None:
        """Take note of the batch whose forward pass comes next, for losses that change over a run.

        Args:
            number: Number of the batch over the whole run, 0 to total - 1.
            total: Number of batches of the whole run.
        """

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the named scalars of a batch, `loss` among them.

        Args:
            images: float, (N, 3, H, W), in 0..1.
            targets: (M, 6) = image, class, x, y, w, h, normalised to the image.
        """
        raise NotImplementedError


class DetectionTask(Task):
    """Plain detection with the loss of `build_loss`.

    `loss` is already multiplied by the batch size; its parts are not.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Any], world_size: int = 1):
        super().__init__()
        self.model = model
        self.loss = loss
        self.world_size = world_size

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the scalars `loss, box, obj, cls`.

        Gradients sum over images as in YOLOv5, also across ranks.
        """
        loss, parts = self.loss(self.model(images), targets)
        return {"loss": loss * self.world_size, **parts}


TaskFactory = Callable[[nn.Module, Any, int], Task]
"""Makes the task of a run from (model, detection loss, world size)."""

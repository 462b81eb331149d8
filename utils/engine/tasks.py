"""What is trained: a task wraps a model and its losses and returns named scalars."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Task(nn.Module):
    """A model with its loss. `forward(images, targets)` returns named scalars.

    `loss` is backpropagated; every other key is detached and becomes `train/<key>` in `results.csv`
    and a field of the progress bar. A task applies the world-size factor itself, since
    data-parallel training averages gradients over the ranks. What is trained beside the model
    (adapters) is a submodule here: it reaches the optimizer and the resume state, never the
    exported model.
    """

    model: nn.Module

    def start_batch(self, number: int, total: int) -> None:
        """Called before the forward pass of each batch, 0 to total - 1 over the whole run, for
        losses that change with it.
        """

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """`images` float (N, 3, H, W) in 0..1, `targets` (M, 6) = image, class, x, y, w, h
        normalised.
        """
        raise NotImplementedError


class DetectionTask(Task):
    """Plain detection: the loss is that of `build_loss`, already multiplied by the batch size, its
    parts are not.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Any], world_size: int = 1):
        super().__init__()
        self.model = model
        self.loss = loss
        self.world_size = world_size

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Named scalars `loss, box, obj, cls`; gradients sum over images as in YOLOv5, also across
        ranks.
        """
        loss, parts = self.loss(self.model(images), targets)
        return {"loss": loss * self.world_size, **parts}


TaskFactory = Callable[[nn.Module, Any, int], Task]
"""Makes the task of a run from (model, detection loss, world size)."""

"""Training images that a cut is compensated with, and the worth of each pixel of a layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.engine.modes import evaluating
from utils.images import unit_range

POWER = 0.5  # of the squared gradient; 1 leaves too few pixels that count

LossOf = Callable[[nn.Module, slice], Tensor]
"""(model in eval mode, range of images) -> the detection loss of these images, a scalar."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Images for the compensation of a cut.

    Attributes:
        images: uint8 (N, 3, H, W).
        loss: the detection loss of some of the images, times their number.
        batch: images of a forward pass where the passes are independent.
    """

    images: Tensor
    loss: LossOf
    batch: int = 16

    def __len__(self) -> int:
        return len(self.images)

    def slices(self) -> Iterator[slice]:
        """Yield ranges of at most `batch` images."""
        for first in range(0, len(self), self.batch):
            yield slice(first, min(first + self.batch, len(self)))

    def part(self, which: slice, device: torch.device) -> Tensor:
        """Return some of the images in 0..1."""
        return unit_range(self.images[which].to(device))


def pixel_weights(
    model: nn.Module, layers: Sequence[str], calibration: Calibration
) -> dict[str, Tensor]:
    """Return how much the loss depends on each output pixel of each layer.

    The weight of a pixel is the squared gradient of the loss, summed over the channels, to the
    power .5. Without weights a fit spends itself on background. A layer whose gradients are all 0,
    or not finite, gets equal weights.

    Args:
        model: the uncut model; its parameters and their gradients do not change.
        layers: names of convolutions and linear layers.
        calibration: the images.

    Returns:
        Layer -> float32 (N, pixels) on the CPU.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}

    def watch(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.register_hook(lambda gradient: keep(name, gradient))

        return hook

    def keep(name: str, gradient: Tensor) -> None:
        channels = 1 if gradient.dim() == 4 else -1
        parts[name].append(gradient.detach().square().sum(channels).flatten(1).float().cpu())

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in layers]
    weights = [p for p in model.parameters() if p.is_floating_point()]
    frozen = [p for p in weights if not p.requires_grad]
    with evaluating(model):
        for parameter in frozen:
            parameter.requires_grad_(True)
        for which in calibration.slices():
            torch.autograd.grad(calibration.loss(model, which), weights, allow_unused=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
    for handle in handles:
        handle.remove()
    return {name: _of_squares(torch.cat(found)) for name, found in parts.items() if found}


def _of_squares(squares: Tensor) -> Tensor:
    """Return the weights from squared gradients; 1 where these say nothing."""
    if squares.isfinite().all() and squares.sum() > 0:
        return squares.pow(POWER)
    return torch.ones_like(squares)

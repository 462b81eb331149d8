"""Methods that score a channel by the gradients of the loss on a few batches of training images."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from prune_methods.criteria.base import PRUNERS, GradientCriterion
from prune_methods.criteria.scoring import Evidence, counted_weights, kernel_sums
from prune_methods.groups.channel_index import ChannelIndex
from utils.errors import UserError
from utils.log import LOGGER

Losses = Callable[[nn.Module, bool], Iterable[Tensor]]
"""(model in eval mode, whether each image gets a loss of its own) -> scalar losses with graphs."""


@PRUNERS.register("group_taylor")
class GroupTaylor(GradientCriterion):
    """Score by |w * g|, the change of the loss to first order (Molchanov et al., CVPR 2019).

    g is the gradient of a batch; the score is a mean over batches. The absolute value is taken
    before the mean, because near a minimum the gradients of different batches cancel.
    """

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return |w * g|."""
        return (weight * gradient).abs()


@PRUNERS.register("group_hessian")
class GroupHessian(GradientCriterion):
    """Score by w^2 * E[g^2], the diagonal of Optimal Brain Damage (LeCun et al., 1989).

    g is the gradient of a single image. E[g^2] over images is the empirical Fisher information,
    which stands for the Hessian. Over batches the mean square would fall as the batch size grows.
    """

    per_image = True

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return (w * g)^2."""
        return (weight * gradient).square()


def gradient_evidence(
    index: ChannelIndex, criterion: GradientCriterion, losses: Losses
) -> Evidence:
    """Return the mean contribution over all losses, for every layer that the criterion counts.

    The passes run on a copy whose batch norms use their running statistics; frozen weights of the
    model count too. A pass whose gradients are not finite is left out, as training skips such a
    step.

    Args:
        index: the channels of the model as masked; the model is never changed.
        criterion: the method.
        losses: gives one scalar loss per pass.

    Returns:
        Layer name -> table of contributions, summed over kernel positions.

    Raises:
        UserError: where no pass has finite gradients.
    """
    model = copy.deepcopy(index.model).eval().requires_grad_(True)
    weights = counted_weights(model, index.groups, criterion)
    sums: dict[str, Tensor] = {}
    used = passes = 0
    for loss in losses(model, criterion.per_image):
        passes += 1
        gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        if not all(gradient.isfinite().all() for gradient in (loss, *gradients)):
            continue
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                table = kernel_sums(criterion.contribution(weight.double(), gradient.double()))
                sums[name] = sums[name] + table if used else table
        used += 1
    if not used:
        raise UserError(
            f"pruning: none of {passes} losses on training images is finite; take a checkpoint that"
            " has not diverged"
        )
    if used < passes:
        LOGGER.warning(
            f"{passes - used} of {passes} passes gave gradients that are not finite and do not"
            " count"
        )
    return {name: (total / used).cpu().numpy() for name, total in sums.items()}

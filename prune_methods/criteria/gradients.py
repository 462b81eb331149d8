"""Methods that ask the loss what a channel is worth: by its gradients on a few batches of training
images.
"""

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
"""(model in eval mode, one loss an image rather than a batch) -> scalars, each with its graph."""


@PRUNERS.register("group_taylor")
class GroupTaylor(GradientCriterion):
    """|w * g|, g the gradient of a batch, mean over batches: by how much the loss would change
    (Molchanov et al., CVPR 2019).

    The absolute value comes before the mean: near a minimum the gradients of all batches together
    cancel.
    """

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """|w * g|."""
        return (weight * gradient).abs()


@PRUNERS.register("group_hessian")
class GroupHessian(GradientCriterion):
    """w^2 * E[g^2], g the gradient of a single image: the diagonal of Optimal Brain Damage (LeCun
    et al., 1989).

    E[g^2] over images is the empirical Fisher information, which stands for the Hessian; over
    batches it would shrink with them.
    """

    per_image = True

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """(w * g)^2."""
        return (weight * gradient).square()


def gradient_evidence(
    index: ChannelIndex, criterion: GradientCriterion, losses: Losses
) -> Evidence:
    """Return the mean contribution over all losses, of every layer that the criterion counts.

    The passes run on a copy whose batch norms use their running statistics; frozen weights of the
    model count too. A pass with a gradient that is not finite is left out, as training leaves out
    such a step.

    Args:
        index: the channels of the model as masked; the model stays as it is.
        criterion: the method.
        losses: makes the passes.

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

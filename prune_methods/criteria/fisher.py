"""Group Fisher pruning: the curvature of the loss along a gate on each channel."""

import copy

import numpy as np
import torch
from torch import Tensor

from prune_methods.criteria.base import PRUNERS, Array, GateCriterion
from prune_methods.criteria.gradients import Losses
from prune_methods.criteria.scoring import Evidence
from prune_methods.groups.channel_index import ChannelIndex
from utils.errors import UserError


@PRUNERS.register("group_fisher")
class GroupFisher(GateCriterion):
    """Score by E[(sum of w g)^2] over images, the Fisher information of the gate.

    Liu et al., Group Fisher Pruning for Practical Network Compression, ICML 2021. The sum is over
    all weights that read a channel, so coupled layers share one gate. `group_hessian` squares each
    weight's share before the sum instead, as if weights were removed one by one.
    """


def gate_evidence(index: ChannelIndex, criterion: GateCriterion, losses: Losses) -> Evidence:
    """Return the mean contribution of each channel over images, by group.

    Args:
        index: the channels of the model as masked; the model is never changed.
        criterion: the method.
        losses: gives one scalar loss per image.

    Raises:
        UserError: where no image has finite gradients.
    """
    model = copy.deepcopy(index.model).eval().requires_grad_(True)
    layers = {name: model.get_submodule(name).weight for name in index.ins}
    weights = {name: weight for name, weight in layers.items() if isinstance(weight, Tensor)}
    sums, used = np.zeros(index.total), 0
    for loss in losses(model, True):
        found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        gradient = _gate_gradients(index, weights, found)
        if np.isfinite(gradient).all() and bool(loss.isfinite()):
            sums += criterion.contribution(gradient)
            used += 1
    if not used:
        raise UserError(
            "pruning: no loss on training images has finite gradients; take a checkpoint that has"
            " not diverged"
        )
    return {group.name: sums[index.span(i)] / used for i, group in enumerate(index.groups)}


@torch.no_grad()
def _gate_gradients(
    index: ChannelIndex, weights: dict[str, Tensor], gradients: tuple[Tensor, ...]
) -> Array:
    """Return d loss / d gate of every flat channel, float64 (total,)."""
    total = np.zeros(index.total + 1)
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        product = (weight.double() * gradient.double()).transpose(0, 1).flatten(1).sum(1)
        places = index.ins[name]
        total += np.bincount(places, product.cpu().numpy(), index.total + 1)
    return total[:-1]

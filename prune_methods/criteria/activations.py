"""Evidence for methods that look at outputs of layers on training images."""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from prune_methods.criteria.base import ActivationCriterion, CalibrationBatch
from prune_methods.criteria.scoring import Evidence, counted_weights
from prune_methods.groups.channel_index import ChannelIndex
from utils.errors import UserError


def activation_evidence(
    index: ChannelIndex, criterion: ActivationCriterion, batches: Iterable[Tensor]
) -> Evidence:
    """Return the mean saliency of every layer that the criterion counts.

    Args:
        index: the channels of the model as masked; the model stays as it is.
        criterion: the method; `collect` is called once a batch.
        batches: float images (N, 3, H, W) in 0..1, on the device of the model.

    Returns:
        Layer name -> float64 (channels,), a mean over all images.

    Raises:
        UserError: where there is no batch, or `collect` returns other layers or shapes.
    """
    model = copy.deepcopy(index.model).eval()
    names = list(counted_weights(model, index.groups, criterion))
    sums: dict[str, np.ndarray] = {}
    images = 0
    for batch in batches:
        found = criterion.collect(CalibrationBatch(batch, _outputs(model, names, batch)))
        _check(criterion, names, found, index)
        for name, value in found.items():
            table = value.detach().double().cpu().numpy() * len(batch)
            sums[name] = sums[name] + table if images else table
        images += len(batch)
    if not images:
        raise UserError("pruning: there are no training images to look at")
    return {name: total / images for name, total in sums.items()}


@torch.no_grad()
def _outputs(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """Run the model and return the outputs of the named layers."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs[name] = output.clone()  # an activation that follows may work in place

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _check(
    criterion: ActivationCriterion, names: list[str], found: object, index: ChannelIndex
) -> None:
    """Refuse tables that do not fit the layers."""
    method = type(criterion).__name__
    if not isinstance(found, dict) or set(found) != set(names):
        raise UserError(f"{method}: collect must return a value for each layer of batch.outputs")
    for name, value in found.items():
        if tuple(value.shape) != (len(index.outs[name]),):
            raise UserError(
                f"{method}: collect returned shape {tuple(value.shape)} for {name}; "
                f"({len(index.outs[name])},), a value a channel, would be right"
            )

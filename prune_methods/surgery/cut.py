"""The physical cut: slice every layer by its mask, in a copy of the model."""

import copy
import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from models.widths import channel_dim
from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import TRACE_SIZE, raw_outputs
from prune_methods.groups.inexact import gates_fixed, inexact_blocks

TOLERANCE = 1e-4  # `largest_difference` of a cut that is right


def cut(index: ChannelIndex, masks: Masks) -> nn.Module:
    """Return a copy of the model without the masked channels.

    Parameters, buffers and the layers' own widths are cut alike. Optimizers, EMA and hooks have to
    be made for the new model: its parameters are new objects.
    """
    keep = index.flatten(masks)
    smaller = copy.deepcopy(index.model)
    parameters = dict(smaller.named_parameters())
    with torch.no_grad():
        for name, outs in index.outs.items():
            left = np.flatnonzero(keep[outs])
            if name in parameters:
                _cut_parameter(smaller, name, left)
            else:
                ins = np.flatnonzero(keep[index.ins[name]]) if name in index.ins else None
                _cut_layer(smaller.get_submodule(name), left, ins)
    _update_widths(smaller)
    return smaller


def _update_widths(model: nn.Module) -> None:
    """Let the blocks renew the widths that they keep as numbers of their own."""
    for block in model.modules():
        if update := getattr(block, "update_widths", None):
            update()


def zero_channels(index: ChannelIndex, masks: Masks) -> nn.Module:
    """Return a copy of full width in which the masked channels are zero.

    `cut` must equal the copy in eval mode. Outputs of convolutions, norms and bare parameters are
    zeroed; activations keep zero at zero.
    """
    keep = index.flatten(masks)
    copied = copy.deepcopy(index.model)
    parameters = dict(copied.named_parameters())
    with torch.no_grad():
        for name, outs in index.outs.items():
            gone = torch.from_numpy(np.flatnonzero(~keep[outs]))
            if name in parameters:
                own, dim = [parameters[name]], channel_dim(parameters[name])
            else:
                own, dim = list(copied.get_submodule(name).parameters(recurse=False)), 0
            for tensor in own:
                tensor.index_fill_(dim, gone.to(tensor.device), 0)
    return copied


def largest_difference(pruned: nn.Module, reference: nn.Module, imgsz: int = TRACE_SIZE) -> float:
    """Return the largest |difference| over the largest |output| on a fixed random image.

    Raw outputs in eval mode are compared. Values that an inexact block computes from all of its
    channels count as constant (groups/inexact.py).

    Args:
        pruned: the cut model.
        reference: the model of full width with zeroed channels.
        imgsz: side of the image, pixels.

    Returns:
        The ratio; infinite where the real outputs of the pruned model have other shapes than the
        reference's, or are not finite.
    """
    parameter = next(reference.parameters())
    x = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0)).to(parameter)
    ours, theirs = (_raw_maps(model, x, provable=True) for model in (pruned, reference))
    real = _raw_maps(pruned, x) if inexact_blocks(pruned) else ours
    same_shapes = [y.shape for y in real] == [y.shape for y in theirs]
    if not same_shapes or not all(y.isfinite().all() for y in real):
        return math.inf
    scale = max(float(y.abs().max()) for y in theirs)
    largest = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return largest / max(scale, 1e-12)


def _raw_maps(model: nn.Module, x: Tensor, provable: bool = False) -> list[Tensor]:
    """Return the raw outputs in eval mode; `provable` holds gates of inexact blocks constant."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad(), gates_fixed(model) if provable else nullcontext():
        result = raw_outputs(model(x))
    return list(result) if isinstance(result, list | tuple) else [result]


def _cut_layer(layer: nn.Module, outs: np.ndarray, ins: np.ndarray | None) -> None:
    """Keep the channels `outs` and `ins` of a layer, in place.

    `ins` is None for a layer with one side only (norm, depthwise) and for a grouped convolution.
    """
    own = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
    for name, tensor in own:
        if tensor.dim() == 0:  # num_batches_tracked
            continue
        kept = _take(tensor, 0, torch.from_numpy(outs))
        if ins is not None and tensor.dim() > 1:
            kept = _take(kept, 1, torch.from_numpy(ins))
        _replace(layer, name, tensor, kept)
    _set_width(layer, len(outs), None if ins is None else len(ins))


def _set_width(layer: nn.Module, outs: int, ins: int | None) -> None:
    """Write the numbers of channels into a layer's own attributes."""
    if isinstance(layer, _ConvNd):
        if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
            layer.in_channels = layer.groups = outs
        elif ins is not None:
            layer.in_channels = ins
        layer.out_channels = outs
    elif isinstance(layer, _BatchNorm):
        layer.num_features = outs
    elif isinstance(layer, nn.GroupNorm):
        # Whole norm groups go (groups/group_norm.py), the others keep their channels.
        layer.num_groups = outs * layer.num_groups // layer.num_channels
        layer.num_channels = outs
    elif isinstance(layer, nn.Linear) and ins is not None:
        layer.in_features, layer.out_features = ins, outs


def _cut_parameter(model: nn.Module, name: str, left: np.ndarray) -> None:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, attribute)
    _replace(module, attribute, old, _take(old, channel_dim(old), torch.from_numpy(left)))
    if isinstance(module, nn.PReLU):
        module.num_parameters = len(left)


def _take(tensor: Tensor, dim: int, chosen: Tensor) -> Tensor:
    """Select along a dimension; return the tensor itself where all is chosen."""
    if len(chosen) == tensor.shape[dim]:
        return tensor
    return tensor.index_select(dim, chosen.to(tensor.device))


def _replace(module: nn.Module, name: str, old: Tensor, new: Tensor) -> None:
    """Put a new tensor in the place of an old one, as a parameter where the old one was."""
    if new is old:
        return
    fresh = new.detach().clone()
    if isinstance(old, nn.Parameter):
        fresh = nn.Parameter(fresh, requires_grad=old.requires_grad)
    setattr(module, name, fresh)

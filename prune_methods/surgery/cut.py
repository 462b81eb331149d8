"""The one physical cut: slice what the masks say, in a copy of the model."""

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import TRACE_SIZE, ChannelGroup, channel_dim, raw_outputs
from prune_methods.groups.inexact import gates_fixed, inexact_blocks

TOLERANCE = 1e-4  # `largest_difference` of a cut that is right


def apply(model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks) -> nn.Module:
    """A copy of the model without the masked channels; parameters, buffers and the layers' own
    widths are cut alike.

    Optimizers, EMA and hooks have to be made for the new model: its parameters are new objects.
    """
    index = ChannelIndex(model, groups)
    keep = index.flatten(masks)
    smaller = copy.deepcopy(model)
    parameters = dict(smaller.named_parameters())
    with torch.no_grad():
        for name, outs in index.outs.items():
            left = np.flatnonzero(keep[outs])
            if name in parameters:
                _cut_parameter(smaller, name, left)
            else:
                ins = np.flatnonzero(keep[index.ins[name]]) if name in index.ins else None
                _cut_layer(smaller.get_submodule(name), left, ins)
    for block in smaller.modules():
        if update := getattr(
            block, "update_widths", None
        ):  # widths that a block keeps as numbers of its own
            update()
    return smaller


def zeroed(model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks) -> nn.Module:
    """A copy of full width in which the masked channels are zero: what `apply` must equal in eval
    mode.

    Outputs of convolutions, norms and bare parameters are zeroed (activations keep zero at zero).
    """
    index = ChannelIndex(model, groups)
    keep = index.flatten(masks)
    copied = copy.deepcopy(model)
    parameters = dict(copied.named_parameters())
    with torch.no_grad():
        for name, outs in index.outs.items():
            gone = torch.from_numpy(np.flatnonzero(~keep[outs]))
            if name in parameters:
                parameters[name].index_fill_(
                    channel_dim(parameters[name]), gone.to(parameters[name].device), 0
                )
            else:
                for tensor in copied.get_submodule(name).parameters(recurse=False):
                    tensor.index_fill_(0, gone.to(tensor.device), 0)
    return copied


def largest_difference(pruned: nn.Module, reference: nn.Module, imgsz: int = TRACE_SIZE) -> float:
    """Of the raw outputs on a fixed random image in eval mode: largest |difference| over largest
    |output|.

    What inexact blocks compute from all channels counts as constant (inexact.py). Infinite where
    the pruned model's real outputs, with these blocks as they are, have other shapes than the
    reference's or are not finite.
    """
    parameter = next(reference.parameters())
    x = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0)).to(parameter)
    ours, theirs = (_raw_maps(model, x, provable=True) for model in (pruned, reference))
    real = _raw_maps(pruned, x) if inexact_blocks(pruned) else ours
    if [y.shape for y in real] != [y.shape for y in theirs] or not all(
        y.isfinite().all() for y in real
    ):
        return math.inf
    scale = max(float(y.abs().max()) for y in theirs)
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / max(
        scale, 1e-12
    )


def _raw_maps(model: nn.Module, x: Tensor, provable: bool = False) -> list[Tensor]:
    """Raw outputs in eval mode; `provable`: without what depends on all channels of a block."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad(), gates_fixed(model) if provable else nullcontext():
        result = raw_outputs(model(x))
    return list(result) if isinstance(result, list | tuple) else [result]


def _cut_layer(layer: nn.Module, outs: np.ndarray, ins: np.ndarray | None) -> None:
    """`ins` is None where a layer has one side only (norm, depthwise), or a fixed grouped
    convolution's.
    """
    out_index = torch.from_numpy(outs)
    for name, tensor in (
        *layer.named_parameters(recurse=False),
        *layer.named_buffers(recurse=False),
    ):
        if tensor.dim() == 0:  # num_batches_tracked
            continue
        cut = _take(tensor, 0, out_index)
        if ins is not None and tensor.dim() > 1:
            cut = _take(cut, 1, torch.from_numpy(ins))
        _replace(layer, name, tensor, cut)
    if isinstance(layer, _ConvNd):
        if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
            layer.in_channels = layer.groups = len(outs)
        elif ins is not None:
            layer.in_channels = len(ins)
        layer.out_channels = len(outs)
    elif isinstance(layer, _BatchNorm):
        layer.num_features = len(outs)
    elif isinstance(
        layer, nn.GroupNorm
    ):  # whole groups go (bundles.py), the others keep their channels
        layer.num_groups = len(outs) * layer.num_groups // layer.num_channels
        layer.num_channels = len(outs)
    elif isinstance(layer, nn.Linear) and ins is not None:
        layer.in_features, layer.out_features = len(ins), len(outs)


def _cut_parameter(model: nn.Module, name: str, left: np.ndarray) -> None:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, attribute)
    _replace(module, attribute, old, _take(old, channel_dim(old), torch.from_numpy(left)))


def _take(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return (
        tensor
        if len(index) == tensor.shape[dim]
        else tensor.index_select(dim, index.to(tensor.device))
    )


def _replace(module: nn.Module, name: str, old: Tensor, new: Tensor) -> None:
    if new is old:
        return
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(new.detach().clone(), requires_grad=old.requires_grad))
    else:
        setattr(module, name, new.detach().clone())

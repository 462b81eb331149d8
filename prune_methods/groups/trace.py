"""Follow the channels of a layer through the graph: coupled layers, and obstacles to a cut."""

from typing import Any, cast

import numpy as np
import torch_pruning as tp
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch_pruning.ops import OPTYPE

from models.pruning_rules import InnerLayer
from models.widths import channel_dim, channels_of
from prune_methods.groups.graph import (
    LIBRARY_ERRORS,
    PRODUCERS,
    Graph,
    Member,
    NotPruned,
    one_line,
)
from prune_methods.groups.opaque import OpaqueOutput

UNTRACEABLE = "row that cannot be traced"
CUTTABLE = (*PRODUCERS, "in", "norm", "param")  # kinds of members that the cut knows


def output_width(graph: Graph, name: str) -> int:
    """Return the number of channels that a layer, or a block with a rule, computes."""
    if name in graph.opaque_modules:
        return cast(OpaqueOutput, graph.opaque_modules[name].outputs[0]).channels[1]
    return channels_of(graph.modules[name])[0]


def trace(
    graph: Graph, name: str, channels: list[int], not_pruned: NotPruned
) -> tuple[list[Member], str | None]:
    """Follow output channels of a layer to everything that they are coupled to.

    Args:
        graph: the graph of the model.
        name: a layer, or a block with a rule.
        channels: output channels of it; their order is the order of the group's channels.
        not_pruned: layers whose outputs are not to be pruned, with the reasons.

    Returns:
        The members, and the reason why the channels cannot be pruned, None where they can.
    """
    dependencies = graph.dependencies
    layer: Any = graph.modules[name]
    if name in graph.opaque_modules:
        layer = graph.opaque_modules[name].outputs[0]
    if layer not in dependencies.module2node:
        return [], "does not reach the output of the model"
    try:
        pruner: Any = dependencies.get_pruner_of_module(layer)
        items = dependencies.get_pruning_group(layer, pruner.prune_out_channels, channels)
    except LIBRARY_ERRORS as error:
        return [], f"cannot be traced ({one_line(error)})"
    members = _members(graph, items, channels)
    return members, _obstacle(graph, items, members, not_pruned)


def unit_member(block: str, inner: InnerLayer) -> Member:
    """Return the member that the `unit_rule` of a block describes by one of its inner layers."""
    channels, units = np.array(inner.channels), np.array(inner.block_channels)
    return Member(f"{block}.{inner.layer}", inner.kind, channels, units)


def _members(graph: Graph, items: Any, channels: list[int]) -> list[Member]:
    """Return the layers with parameters of a library group as plain data.

    Items without parameters (additions, concatenations, ...) only pass channels on. The slopes of a
    PReLU, one for each channel, are a bare parameter.
    """
    position = np.full(max(channels) + 1, -1)
    position[channels] = np.arange(len(channels))
    members: list[Member] = []
    for item in items:
        module = item.dep.target.module
        if module not in graph.names:
            continue
        name = graph.names[module]
        in_layer, in_group = np.array(item.idxs), position[np.array(item.root_idxs)]
        rule = graph.opaque_modules[name].rule if isinstance(module, OpaqueOutput) else ()
        if rule:
            is_out = graph.dependencies.is_out_channel_pruning_fn(item.dep.handler)
            sides = ("both", "out" if is_out else "in")
            followed = [inner for inner in rule if inner.of in sides]
            members += [_inner_member(name, inner, in_layer, in_group) for inner in followed]
        elif isinstance(module, nn.PReLU):
            members.append(Member(f"{name}.weight", "param", in_layer, in_group))
        elif _can_be_member(module):
            kind = _kind(graph.dependencies, module, item.dep.handler)
            members.append(Member(name, kind, in_layer, in_group))
    return members


def _can_be_member(module: Any) -> bool:
    """Return whether channels are removed from the module or parameter itself.

    Group norms count even without parameters: their `num_groups` shrinks.
    """
    if isinstance(module, nn.Parameter | OpaqueOutput | nn.GroupNorm):
        return True
    return any(True for _ in module.parameters(recurse=False))


def _inner_member(
    block: str, inner: InnerLayer, in_block: np.ndarray, in_group: np.ndarray
) -> Member:
    """Return the member for a layer inside a block, by the block's `channel_rule`.

    Channel `in_block[i]` of the block is channel `in_group[i]` of the group, both int (n,).
    """
    layer_channel = dict(zip(inner.block_channels, inner.channels, strict=True))
    pairs = [
        (layer_channel[b], g)
        for b, g in zip(in_block.tolist(), in_group.tolist(), strict=True)
        if b in layer_channel
    ]
    both = np.array(pairs, dtype=int).reshape(-1, 2)
    return Member(f"{block}.{inner.layer}", inner.kind, both[:, 0], both[:, 1])


def _kind(dependencies: tp.DependencyGraph, module: Any, handler: Any) -> str:
    """Return the kind of a member, or a description of a layer that cannot be cut."""
    if isinstance(module, _ConvNd) and module.groups > 1:
        depthwise = module.groups == module.in_channels == module.out_channels
        if depthwise:  # the cut knows two dimensions only, and no transposed ones
            return "depthwise" if isinstance(module, nn.Conv2d) else type(module).__name__
        return "grouped convolution"
    if isinstance(module, nn.Conv2d | nn.Linear):
        return "out" if dependencies.is_out_channel_pruning_fn(handler) else "in"
    if isinstance(module, _BatchNorm | nn.GroupNorm):
        return "norm"
    if isinstance(module, OpaqueOutput):
        return UNTRACEABLE
    return "param" if isinstance(module, nn.Parameter) else type(module).__name__


def _obstacle(graph: Graph, items: Any, members: list[Member], not_pruned: NotPruned) -> str | None:
    """Return the reason why a group cannot be pruned, or None."""
    if any(_is_output(graph, item.dep) for item in items):
        return "makes the output of the model"
    excluded = [m.name for m in members if m.kind in PRODUCERS and m.name in not_pruned]
    if excluded:
        first, reason = excluded[0], not_pruned[excluded[0]]
        return reason if first == members[0].name else f"coupled to {first} ({reason})"
    for member in members:
        if member.kind not in CUTTABLE:
            return f"coupled to {member.name} ({member.kind}), which cannot be cut"
    return _lost_channels(graph, members)


def _lost_channels(graph: Graph, members: list[Member]) -> str | None:
    """Return a reason where channel numbers of a member are out of range or not unique."""
    of_group = {m.name for m in members}
    widths = {name: _width(thing) for thing, name in graph.names.items() if name in of_group}
    for member in members:
        channels = member.layer_channels
        outs, ins = widths[member.name]
        width = ins if member.kind == "in" else outs
        in_range = channels.size == 0 or (channels.min() >= 0 and channels.max() < width)
        unique = len(set(channels.tolist())) == len(channels)
        if not (in_range and unique):
            return f"its channels cannot be followed into {member.name}"
    return None


def _is_output(graph: Graph, dependency: Any) -> bool:
    """Return whether a node is the model's output, or a layer whose outputs nothing reads."""
    node = dependency.target
    if node.grad_fn in graph.severed:
        return False
    if node.type == OPTYPE.OUTPUT:
        return True
    return not node.outputs and graph.dependencies.is_out_channel_pruning_fn(dependency.handler)


def _width(thing: Any) -> tuple[int, int]:
    """Return (outputs, inputs) of a layer; both are the channels of a bare parameter."""
    if isinstance(thing, nn.Parameter):
        width = thing.shape[channel_dim(thing)]
        return width, width
    return channels_of(thing)

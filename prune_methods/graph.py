"""Which channels of a model can only be removed together: Torch-Pruning's dependency graph, read once into plain data."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch_pruning.ops import OPTYPE

from utils.errors import UserError, suggest

TRACE_SIZE = 64  # pixels; the graph is the same at any size, and small ones are quick
MAKERS = ("out", "depthwise")  # kinds of members whose outputs the channels are
LIBRARY_ERRORS = (IndexError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError, AttributeError)
Names = dict[Any, str]  # module or parameter -> its name


@dataclass(frozen=True)
class Member:
    """A layer's channels in a group: `layer_channels[i]` of `name` goes with channel `group_channels[i]` of the group.

    `kind`: `out` or `in` side of a convolution or linear layer, `depthwise` (both sides at once), `norm`, or `param` (a bare
    parameter, `name` is its own; the channels are its dimension 1, or the only one).
    """

    name: str
    kind: str
    layer_channels: np.ndarray
    group_channels: np.ndarray


@dataclass(frozen=True)
class ChannelGroup:
    """Coupled channels: removing channel c removes what every member has at c. `name` is the first layer that makes them."""

    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Skipped:
    """A layer whose outputs stay whole, and why."""

    layer: str
    reason: str


def groups(model: nn.Module, ignore: Sequence[str] = ()) -> list[ChannelGroup]:
    """The prunable groups of a model, in the order of its layers; see `preflight`."""
    return preflight(model, ignore)[0]


def preflight(model: nn.Module, ignore: Sequence[str] = ()) -> tuple[list[ChannelGroup], list[Skipped]]:
    """Every layer is either in a group that can be cut, or listed with the reason why not.

    `model` is a training form (with its batch norms) and is left untouched. `ignore` are row numbers (`24`), module names or
    globs (`model.*.cv3`) whose outputs stay whole. `UserError` where a pattern matches nothing or the model cannot be traced.
    """
    ignored = ignored_layers(model, ignore)
    traced = copy.deepcopy(model).requires_grad_(True)  # frozen parameters would drop out of the graph without a word
    graph = build_graph(traced)
    names: Names = {m: n for n, m in traced.named_modules()} | {p: n for n, p in traced.named_parameters()}
    found: list[ChannelGroup] = []
    skipped: list[Skipped] = []
    grouped: dict[str, set[int]] = {}  # output channels that already are in a group
    for name, layer in traced.named_modules():
        if not isinstance(layer, _ConvNd | nn.Linear):
            continue
        channels = [c for c in range(layer.weight.shape[0]) if c not in grouped.get(name, ())]
        if not channels:
            continue
        members, reason = _trace(graph, layer, channels, names, ignored)
        makers = [m for m in members if m.kind in MAKERS]
        for member in makers:
            grouped.setdefault(member.name, set()).update(member.layer_channels.tolist())
        if reason:
            skipped += [Skipped(layer_name, reason) for layer_name in [m.name for m in makers] or [name]]
        else:
            found.append(ChannelGroup(name, len(channels), tuple(members)))
    return found, skipped


def ignored_layers(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Names of all modules that the patterns mean, with everything inside them."""
    names = [name for name, _ in model.named_modules() if name]
    chosen: set[str] = set()
    for pattern in patterns:
        wanted = f"model.{pattern}" if pattern.isdigit() else pattern
        hits = [name for name in names if fnmatchcase(name, wanted)]
        if not hits:
            raise UserError(f"--ignore: no layer is called '{pattern}'{suggest(wanted, names)} (a row number, a name or a glob)")
        chosen.update(name for name in names for hit in hits if name == hit or name.startswith(f"{hit}."))
    return chosen


def build_graph(model: nn.Module) -> tp.DependencyGraph:
    """The library's graph of a model that may be written to; in eval mode, so that batch norms stay as they are."""
    bare: Any = [(p, _channel_dim(p)) for p in _bare_parameters(model)]  # documented as a dict, but a dict fails
    graph = tp.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # about unknown operations: `_obstacle` decides on them
            graph.build_dependency(
                model,
                example_inputs=torch.rand(1, 3, TRACE_SIZE, TRACE_SIZE).to(next(model.parameters())),
                forward_fn=lambda net, x: raw_outputs(net(x)),
                unwrapped_parameters=bare,
            )
    except LIBRARY_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise UserError(f"pruning: the dependency graph of this model cannot be built ({reason})") from error
    return graph


def raw_outputs(outputs: Any) -> Any:
    """The raw maps of a detector's eval output (boxes, raw maps): decoding adds grids that are no part of the channels' graph."""
    return outputs[1] if isinstance(outputs, tuple) else outputs


def _bare_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that a module of our own holds by itself, as YOLOv7's ImplicitA."""
    for module in model.modules():
        if not type(module).__module__.startswith("torch.nn"):
            yield from module.parameters(recurse=False)


def _channel_dim(parameter: Tensor) -> int:
    return 1 if parameter.dim() > 1 else 0


def _trace(
    graph: tp.DependencyGraph, layer: nn.Module, channels: list[int], names: Names, ignored: set[str]
) -> tuple[list[Member], str | None]:
    """Everything that these output channels of a layer are coupled to, and why it must stay whole, if it must."""
    if layer not in graph.module2node:
        return [], "does not reach the output of the model"
    try:
        pruner: Any = graph.get_pruner_of_module(layer)
        items = graph.get_pruning_group(layer, pruner.prune_out_channels, channels)
    except LIBRARY_ERRORS as error:
        return [], f"cannot be traced ({type(error).__name__})"
    members = _members(graph, items, names, channels)
    return members, _obstacle(graph, items, members, names, ignored)


def _members(graph: tp.DependencyGraph, items: Any, names: Names, channels: list[int]) -> list[Member]:
    """The layers with parameters of a library group, as plain data; operations without any only carry channels on."""
    position = np.full(max(channels) + 1, -1)
    position[channels] = np.arange(len(channels))
    members = []
    for item in items:
        module = item.dep.target.module
        if module in names and (isinstance(module, nn.Parameter) or any(True for _ in module.parameters(recurse=False))):
            kind = _kind(graph, module, item.dep.handler)
            members.append(Member(names[module], kind, np.array(item.idxs), position[np.array(item.root_idxs)]))
    return members


def _kind(graph: tp.DependencyGraph, module: Any, handler: Any) -> str:
    """Member kind, or the class name of a layer that the cut does not know."""
    if isinstance(module, _ConvNd) and module.groups > 1:
        return "depthwise" if module.groups == module.in_channels == module.out_channels else "grouped convolution"
    if isinstance(module, nn.Conv2d | nn.Linear):
        return "out" if graph.is_out_channel_pruning_fn(handler) else "in"
    if isinstance(module, _BatchNorm):
        return "norm"
    return "param" if isinstance(module, nn.Parameter) else type(module).__name__


def _obstacle(graph: tp.DependencyGraph, items: Any, members: list[Member], names: Names, ignored: set[str]) -> str | None:
    """Why a group must stay whole, or None."""
    if any(_is_output(graph, item.dep) for item in items):
        return "makes the output of the model"
    if hit := [m.name for m in members if m.kind in MAKERS and m.name in ignored]:
        return "ignored by the user" if hit[0] == members[0].name else f"coupled to {hit[0]}, which the user ignores"
    if odd := [m for m in members if m.kind not in (*MAKERS, "in", "norm", "param")]:
        return f"coupled to {odd[0].name} ({odd[0].kind}), which cannot be cut"
    widths = {name: _width(thing) for thing, name in names.items() if name in {m.name for m in members}}
    for member in members:
        side = widths[member.name][1 if member.kind == "in" else 0]
        inside = len(member.layer_channels) > 0 and member.layer_channels.min() >= 0 and member.layer_channels.max() < side
        if not inside or len(set(member.layer_channels.tolist())) < len(member.layer_channels):
            return f"its channels cannot be followed into {member.name}"
    return None


def _is_output(graph: tp.DependencyGraph, dependency: Any) -> bool:
    """The model's output, or the outputs of a layer that nothing follows."""
    node = dependency.target
    return node.type == OPTYPE.OUTPUT or (not node.outputs and graph.is_out_channel_pruning_fn(dependency.handler))


def _width(thing: Any) -> tuple[int, int]:
    """(outputs, inputs) of a layer; a bare parameter has its channel dimension."""
    if isinstance(thing, nn.Parameter):
        width = thing.shape[_channel_dim(thing)]
        return width, width
    if isinstance(thing, nn.Linear | _ConvNd):
        return int(thing.weight.shape[0]), int(thing.weight.shape[1]) * getattr(thing, "groups", 1)
    width = len(next(thing.parameters(recurse=False)))
    return width, width

"""Which channels of a model can only be removed together: Torch-Pruning's dependency graph, read
into plain data.
"""

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch_pruning.ops import OPTYPE

from models.pruning_rules import InnerLayer, tracing
from models.widths import channel_dim, channels_of
from prune_methods.groups.opaque import (
    OUTPUT_PRUNERS,
    OpaqueModule,
    OpaqueOutput,
    replace_opaque_modules,
)
from utils.errors import UserError, suggest
from utils.log import deprecated

TRACE_SIZE = 64  # pixels; the graph is the same at any size, and small ones are quick
PRODUCERS = ("out", "depthwise")  # kinds of members whose outputs the channels are
LIBRARY_ERRORS = (
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    AttributeError,
    AssertionError,
)
UNTRACEABLE = "row that cannot be traced"
IGNORED = "ignored by the user"
Names = dict[Any, str]  # module or parameter -> its name
Whole = Mapping[str, str]  # layers whose outputs shall stay whole -> why


@dataclass(frozen=True)
class Member:
    """A layer's channels in a group: `layer_channels[i]` of `name` goes with channel
    `group_channels[i]` of the group.

    `kind`: `out` or `in` side of a convolution or linear layer, `depthwise` (both sides at once),
    `norm`, or `param` (a bare parameter, `name` is its own; the channels are its dimension 1, or
    the only one).
    """

    name: str
    kind: str
    layer_channels: np.ndarray
    group_channels: np.ndarray


@dataclass(frozen=True)
class ChannelGroup:
    """Coupled channels: removing channel c removes what every member has at c.

    `name` is the first layer that makes them.

    A channel of the group may stand for several of each layer: those that one group norm takes a
    mean over, or a head.
    """

    name: str
    size: int
    members: tuple[Member, ...]

    @property
    def per_channel(self) -> int:
        """Channels of its narrowest layer that one channel of the group stands for."""
        return max(
            min((len(m.layer_channels) for m in self.members if m.kind in PRODUCERS), default=0)
            // self.size,
            1,
        )


@dataclass(frozen=True)
class Skipped:
    """A layer whose outputs stay whole, and why."""

    layer: str
    reason: str
    also: tuple[str, ...] = ()
    """Norms and bare parameters that have the same channels."""


def ignored_layers(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Names of all modules that the patterns mean, with everything inside them."""
    names = [name for name, _ in model.named_modules() if name]
    chosen: set[str] = set()
    for pattern in patterns:
        wanted = f"model.{pattern}" if pattern.isdigit() else pattern
        hits = [name for name in names if fnmatchcase(name, wanted)]
        if not hits:
            raise UserError(
                f"--ignore: no layer is called '{pattern}'{suggest(wanted, names)} (a row number, a"
                " name or a glob)"
            )
        chosen.update(
            name for name in names for hit in hits if name == hit or name.startswith(f"{hit}.")
        )
    return chosen


def layers_to_keep(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    """Layers whose outputs stay whole, and why: those that the user ignores, and those that blocks
    name in `no_prune`.
    """
    whole: dict[str, str] = {}
    for name, block in model.named_modules():
        kept = getattr(block, "no_prune", {})
        if old := getattr(block, "keep_whole", {}):
            deprecated("keep_whole", "no_prune")
            kept = kept or old
        if not isinstance(kept, Mapping):
            raise UserError(
                f'{type(block).__name__}: no_prune = {kept!r} does not say why; write {{"child":'
                ' "reason"}'
            )
        for child, why in kept.items():
            first = f"{name}.{child}".lstrip(".")
            inside = [
                f"{first}.{inner}"
                for inner, _ in block.get_submodule(child).named_modules()
                if inner
            ]
            whole |= dict.fromkeys(
                [first, *inside], f"its block ({type(block).__name__}) keeps it whole: {why}"
            )
    return whole | dict.fromkeys(ignored_layers(model, patterns), IGNORED)


@dataclass(frozen=True)
class Graph:
    """The library's graph of a copy of the model, with the names of what is in it."""

    dependencies: tp.DependencyGraph
    names: Names
    modules: Mapping[str, nn.Module]
    """Of the copy by name, those behind stand-ins too."""
    opaque_modules: Mapping[str, OpaqueModule]
    severed: frozenset[Any]
    """Autograd nodes that end at a `cut`."""


def build_graph(model: nn.Module, opaque: Collection[str] = ()) -> Graph:
    """The graph of the model in eval mode; `opaque` are modules whose inside stays out of it.

    The model is left untouched.

    One of LIBRARY_ERRORS where the library fails.
    """
    copied = copy.deepcopy(model).requires_grad_(
        True
    )  # frozen parameters would drop out of the graph without a word
    modules = dict(copied.named_modules())
    names: Names = {m: n for n, m in modules.items()} | {p: n for n, p in copied.named_parameters()}
    opaque_modules = replace_opaque_modules(copied, opaque)
    x = torch.rand(1, 3, TRACE_SIZE, TRACE_SIZE).to(next(copied.parameters()))
    severed: set[Any] = set()

    def run(net: Any, x: Any) -> Any:
        with tracing() as before_cuts:
            outputs = raw_outputs(net(x))
        severed.update(t.grad_fn for t in before_cuts)
        return [outputs, *before_cuts]

    bare: Any = [
        (p, channel_dim(p)) for p in _bare_parameters(copied)
    ]  # documented as a dict, but a dict fails
    graph = tp.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about unknown operations: `_obstacle` decides on them
        if opaque_modules:
            copied.eval()(x)  # makes their exits
        names |= {
            exit: name
            for name, opaque_module in opaque_modules.items()
            for exit in opaque_module.outputs
        }
        graph.build_dependency(
            copied,
            example_inputs=x,
            forward_fn=run,
            unwrapped_parameters=bare,
            customized_pruners=dict(OUTPUT_PRUNERS),
        )
    return Graph(graph, names, modules, opaque_modules, frozenset(severed))


def raw_outputs(outputs: Any) -> Any:
    """The raw maps of a detector's eval output (boxes, raw maps): decoding adds grids that are no
    part of the channels' graph.
    """
    return outputs[1] if isinstance(outputs, tuple) else outputs


def one_line(error: BaseException) -> str:
    """A library's error as part of a reason."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")[:150]


def _bare_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that a module of our own holds by itself, as YOLOv7's ImplicitA."""
    for module in model.modules():
        layer = isinstance(
            module, nn.Linear | _ConvNd | _BatchNorm | nn.GroupNorm
        )  # those of timm are classes of its own
        if not layer and not type(module).__module__.startswith("torch.nn"):
            yield from module.parameters(recurse=False)


def output_width(graph: Graph, name: str) -> int:
    """Channels that a layer, or a block with a rule, makes."""
    if name in graph.opaque_modules:
        return cast(OpaqueOutput, graph.opaque_modules[name].outputs[0]).channels[1]
    return channels_of(graph.modules[name])[0]


def trace(
    graph: Graph, name: str, channels: list[int], whole: Whole
) -> tuple[list[Member], str | None]:
    """Everything that these output channels of a layer are coupled to, and why it must stay whole,
    if it must.
    """
    dependencies = graph.dependencies
    layer: Any = (
        graph.opaque_modules[name].outputs[0]
        if name in graph.opaque_modules
        else graph.modules[name]
    )
    if layer not in dependencies.module2node:
        return [], "does not reach the output of the model"
    try:
        pruner: Any = dependencies.get_pruner_of_module(layer)
        items = dependencies.get_pruning_group(layer, pruner.prune_out_channels, channels)
    except LIBRARY_ERRORS as error:
        return [], f"cannot be traced ({one_line(error)})"
    members = _members(graph, items, channels)
    return members, _obstacle(graph, items, members, whole)


def _members(graph: Graph, items: Any, channels: list[int]) -> list[Member]:
    """The layers with parameters of a library group, as plain data; operations without any only
    carry channels on.
    """
    position = np.full(max(channels) + 1, -1)
    position[channels] = np.arange(len(channels))
    members: list[Member] = []
    for item in items:
        module = item.dep.target.module
        if module not in graph.names:
            continue
        name, numbers, in_group = (
            graph.names[module],
            np.array(item.idxs),
            position[np.array(item.root_idxs)],
        )
        rule = graph.opaque_modules[name].rule if isinstance(module, OpaqueOutput) else ()
        if rule:
            side = "out" if graph.dependencies.is_out_channel_pruning_fn(item.dep.handler) else "in"
            members += [
                _inside(name, inner, numbers, in_group)
                for inner in rule
                if inner.of in ("both", side)
            ]
        elif isinstance(module, nn.Parameter | OpaqueOutput | nn.GroupNorm) or any(
            True for _ in module.parameters(recurse=False)
        ):
            members.append(
                Member(name, _kind(graph.dependencies, module, item.dep.handler), numbers, in_group)
            )
    return members


def _inside(block: str, inner: InnerLayer, numbers: np.ndarray, in_group: np.ndarray) -> Member:
    """A layer inside a block by the block's own rule, where the group has the block's channels
    `numbers`.
    """
    layer_channel = dict(zip(inner.block_channels, inner.channels, strict=True))
    pairs = [
        (layer_channel[n], g)
        for n, g in zip(numbers.tolist(), in_group.tolist(), strict=True)
        if n in layer_channel
    ]
    both = np.array(pairs, dtype=int).reshape(-1, 2)
    return Member(f"{block}.{inner.layer}", inner.kind, both[:, 0], both[:, 1])


def unit_member(block: str, inner: InnerLayer) -> Member:
    """A layer inside a block by its `unit_rule`."""
    return Member(
        f"{block}.{inner.layer}",
        inner.kind,
        np.array(inner.channels),
        np.array(inner.block_channels),
    )


def _kind(dependencies: tp.DependencyGraph, module: Any, handler: Any) -> str:
    """Member kind, or what a layer is that the cut does not know."""
    if isinstance(module, _ConvNd) and module.groups > 1:
        return (
            "depthwise"
            if module.groups == module.in_channels == module.out_channels
            else "grouped convolution"
        )
    if isinstance(module, nn.Conv2d | nn.Linear):
        return "out" if dependencies.is_out_channel_pruning_fn(handler) else "in"
    if isinstance(module, _BatchNorm | nn.GroupNorm):
        return "norm"
    if isinstance(module, OpaqueOutput):
        return UNTRACEABLE
    return "param" if isinstance(module, nn.Parameter) else type(module).__name__


def _obstacle(graph: Graph, items: Any, members: list[Member], whole: Whole) -> str | None:
    """Why a group must stay whole, or None."""
    if any(_is_output(graph, item.dep) for item in items):
        return "makes the output of the model"
    if hit := [m.name for m in members if m.kind in PRODUCERS and m.name in whole]:
        return (
            whole[hit[0]] if hit[0] == members[0].name else f"coupled to {hit[0]} ({whole[hit[0]]})"
        )
    if odd := [m for m in members if m.kind not in (*PRODUCERS, "in", "norm", "param")]:
        return f"coupled to {odd[0].name} ({odd[0].kind}), which cannot be cut"
    widths = {
        name: _width(thing)
        for thing, name in graph.names.items()
        if name in {m.name for m in members}
    }
    for member in members:
        side = widths[member.name][1 if member.kind == "in" else 0]
        inside = member.layer_channels.size == 0 or (
            member.layer_channels.min() >= 0 and member.layer_channels.max() < side
        )
        if not inside or len(set(member.layer_channels.tolist())) < len(member.layer_channels):
            return f"its channels cannot be followed into {member.name}"
    return None


def _is_output(graph: Graph, dependency: Any) -> bool:
    """The model's output, or the outputs of a layer that nothing follows."""
    node = dependency.target
    if node.grad_fn in graph.severed:
        return False
    return node.type == OPTYPE.OUTPUT or (
        not node.outputs and graph.dependencies.is_out_channel_pruning_fn(dependency.handler)
    )


def _width(thing: Any) -> tuple[int, int]:
    """(outputs, inputs) of a layer; a bare parameter has its channel dimension."""
    if isinstance(thing, nn.Parameter):
        width = thing.shape[channel_dim(thing)]
        return width, width
    return channels_of(thing)

"""Coupled channels as plain data, and the dependency graph that they are read from.

Channels are coupled where they can only be removed together. Torch-Pruning traces the model into a
dependency graph; groups/trace.py reads the coupled channels from the graph.
"""

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from models.heads.base import Detections
from models.pruning_rules import tracing
from models.widths import channel_dim
from prune_methods.groups.opaque import OUTPUT_PRUNERS, OpaqueModule, replace_opaque_modules
from utils.errors import UserError, suggest
from utils.log import deprecated

TRACE_SIZE = 64  # pixels; the graph is the same at any size, and small images are quick
PRODUCERS = ("out", "depthwise")  # kinds of members that compute the channels of a group
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
IGNORED = "ignored by the user"
Names = dict[Any, str]  # module or parameter -> its name
NotPruned = Mapping[str, str]  # layer whose outputs are not to be pruned -> the reason


@dataclass(frozen=True)
class Member:
    """The channels of one layer that belong to a group.

    Attributes:
        name: the layer's name in the model.
        kind: `out` or `in` side of a convolution or linear layer, `depthwise` (both sides at once),
            `norm`, or `param`: a bare parameter, whose channels are its dimension 1, or its only
            dimension.
        layer_channels: int (n,), channel numbers of the layer.
        group_channels: int (n,); `layer_channels[i]` is removed with channel `group_channels[i]` of
            the group.
    """

    name: str
    kind: str
    layer_channels: np.ndarray
    group_channels: np.ndarray


@dataclass(frozen=True)
class ChannelGroup:
    """Coupled channels: removing channel c removes the channels of every member at c.

    A channel of the group may stand for several channels of each layer: all those that one group
    norm takes a mean over, or an attention head.

    Attributes:
        name: the first layer that computes the channels.
        size: number of channels of the group.
        members: the coupled layers.
    """

    name: str
    size: int
    members: tuple[Member, ...]

    @property
    def per_channel(self) -> int:
        """Channels of the narrowest layer that one channel of the group stands for, at least 1."""
        widths = [len(m.layer_channels) for m in self.members if m.kind in PRODUCERS]
        return max(min(widths, default=0) // self.size, 1)


@dataclass(frozen=True)
class Skipped:
    """A layer whose outputs are not pruned, and the reason."""

    layer: str
    reason: str
    also: tuple[str, ...] = ()
    """Norms and bare parameters that have the same channels."""


def ignored_layers(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Return the names of all modules that the patterns match, and of the modules inside them.

    A pattern is a row number, a module name or a glob. `UserError` where one matches nothing.
    """
    names = [name for name, _ in model.named_modules() if name]
    chosen: set[str] = set()
    for pattern in patterns:
        wanted = f"model.{pattern}" if pattern.isdigit() else pattern
        matches = [name for name in names if fnmatchcase(name, wanted)]
        if not matches:
            raise UserError(
                f"--ignore: no layer is called '{pattern}'{suggest(wanted, names)} (a row number, a"
                " name or a glob)"
            )
        for match in matches:
            chosen.update(n for n in names if n == match or n.startswith(f"{match}."))
    return chosen


def layers_to_keep(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    """Return the layers whose outputs are not to be pruned, each with the reason.

    Such layers are named by blocks in `no_prune`, or ignored by the user with `patterns` (see
    `ignored_layers`). The user's wish is the reason where both apply.
    """
    not_pruned: dict[str, str] = {}
    for name, block in model.named_modules():
        for child, why in _no_prune(block).items():
            reason = f"its block ({type(block).__name__}) keeps it whole: {why}"
            first = f"{name}.{child}".lstrip(".")
            for inner, _ in block.get_submodule(child).named_modules():
                not_pruned[f"{first}.{inner}" if inner else first] = reason
    return not_pruned | dict.fromkeys(ignored_layers(model, patterns), IGNORED)


def _no_prune(block: nn.Module) -> Mapping[str, str]:
    """Return the children that a block excludes from pruning, each with the reason."""
    declared = getattr(block, "no_prune", {})
    if old := getattr(block, "keep_whole", {}):
        deprecated("keep_whole", "no_prune")
        declared = declared or old
    if not isinstance(declared, Mapping):
        raise UserError(
            f"{type(block).__name__}: no_prune = {declared!r} does not say why; write"
            ' {"child": "reason"}'
        )
    return declared


@dataclass(frozen=True)
class Graph:
    """Torch-Pruning's graph of a copy of the model.

    Attributes:
        dependencies: the library's graph.
        names: modules, bare parameters and outputs of opaque modules -> name in the model.
        modules: modules of the copy by name, including those hidden inside opaque modules.
        opaque_modules: stand-ins by the name of the module that they replace.
        severed: autograd nodes whose tensors `detach_channels` detached.
    """

    dependencies: tp.DependencyGraph
    names: Names
    modules: Mapping[str, nn.Module]
    opaque_modules: Mapping[str, OpaqueModule]
    severed: frozenset[Any]


def build_graph(model: nn.Module, opaque: Collection[str] = ()) -> Graph:
    """Trace a copy of the model in eval mode; the model itself is not changed.

    Args:
        model: the training form.
        opaque: names of modules whose inside is left out of the graph.

    Raises:
        One of `LIBRARY_ERRORS` where Torch-Pruning cannot follow the model.
    """
    # Frozen parameters would be missing in the graph without a warning.
    copied = copy.deepcopy(model).requires_grad_(True)
    _replace_shared_slopes(copied)
    modules = dict(copied.named_modules())
    names: Names = {m: n for n, m in modules.items()} | {p: n for n, p in copied.named_parameters()}
    opaque_modules = replace_opaque_modules(copied, opaque)
    size = max(TRACE_SIZE, getattr(model, "max_stride", 1))
    x = torch.rand(1, 3, size, size).to(next(copied.parameters()))
    severed: set[Any] = set()

    def run(net: Any, x: Any) -> Any:
        with tracing() as before_detach:
            outputs = raw_outputs(net(x))
        severed.update(t.grad_fn for t in before_detach)
        return [outputs, *before_detach]

    # The library documents a dict here, but fails on one.
    bare: Any = [(p, channel_dim(p)) for p in _bare_parameters(copied)]
    graph = tp.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about unknown operations, which groups/trace.py judges
        if opaque_modules:
            copied.eval()(x)  # the first run creates the outputs of the opaque modules
        for name, opaque_module in opaque_modules.items():
            names |= dict.fromkeys(opaque_module.outputs, name)
        graph.build_dependency(
            copied,
            example_inputs=x,
            forward_fn=run,
            unwrapped_parameters=bare,
            customized_pruners=dict(OUTPUT_PRUNERS),
        )
    return Graph(graph, names, modules, opaque_modules, frozenset(severed))


def _replace_shared_slopes(model: nn.Module) -> None:
    """Put a LeakyReLU in the place of each PReLU with one slope for all channels.

    The library takes such a PReLU for a layer without a known width.
    """
    shared = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.PReLU) and module.num_parameters == 1
    ]
    for name, module in shared:
        model.set_submodule(name, nn.LeakyReLU(module.weight.item()))


def raw_outputs(outputs: Any) -> Any:
    """Return the raw maps of a detector's eval output, any other output as it is.

    Decoding the boxes adds grids, which have no place in a graph of channels.
    """
    return outputs.raw if isinstance(outputs, Detections) else outputs


def one_line(error: BaseException) -> str:
    """Return a library's error on one line of at most 150 characters, for use in a reason."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")[:150]


def _bare_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that a block holds outside of any layer, such as YOLOv7's ImplicitA."""
    for module in model.modules():
        # Layers of timm are subclasses defined outside of torch.nn.
        is_layer = isinstance(module, nn.Linear | _ConvNd | _BatchNorm | nn.GroupNorm)
        if not is_layer and not type(module).__module__.startswith("torch.nn"):
            yield from module.parameters(recurse=False)

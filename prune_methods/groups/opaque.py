"""Stand-ins for modules whose inside is left out of the graph.

Such a module is a row that Torch-Pruning cannot follow, or a block with its own `channel_rule`.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from models.pruning_rules import InnerLayer


class OpaqueOutput(nn.Module):
    """One output of a stand-in, a single node of the graph.

    Its input channels are not coupled to its output channels.
    """

    channels = (0, 0)
    """Number of input and of output channels; known after the first run."""

    def forward(self, output: Tensor, inputs: list[Tensor]) -> Tensor:
        """Return `output` so that the graph shows it as one operation on `inputs`."""
        self.channels = inputs[0].shape[1], output.shape[1]
        return _Link.apply(output, *inputs)


class ChannelwiseOutput(OpaqueOutput):
    """An output whose channels are the input channels: both can only be cut together."""


class _Link(torch.autograd.Function):
    """Return a copy of `output` that autograd takes for a function of `inputs`.

    Only the graph of the function is read; gradients are never sent through it.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, *inputs: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("a stand-in is for tracing only")


class _OutputPruner(tp.BasePruningFunc):
    """Tell the library the widths of an output; cutting leaves the output as it is."""

    def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
        return layer

    def prune_in_channels(self, layer: Any, idxs: Any) -> Any:
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return layer.channels[1]

    def get_in_channels(self, layer: Any) -> int:
        return layer.channels[0]


class _ChannelwiseOutputPruner(_OutputPruner):
    # The library takes both sides of a layer for one where they share one function.
    prune_in_channels = _OutputPruner.prune_out_channels


OUTPUT_PRUNERS: dict[Any, Any] = {
    OpaqueOutput: _OutputPruner(),
    ChannelwiseOutput: _ChannelwiseOutputPruner(),
}


class OpaqueModule(nn.Module):
    """Compute what `module` computes, but show the graph only the outputs.

    The graph sees one `OpaqueOutput` per tensor of the result; they are created by the first run.
    """

    def __init__(self, module: nn.Module, rule: tuple[InnerLayer, ...]):
        """Hide a module.

        Args:
            module: the module to stand in for.
            rule: how the module's inner layers follow its channels; where it is empty, nothing that
                the module is coupled to can be cut.
        """
        super().__init__()
        self.hidden = (module,)  # a tuple, so that the module is not registered as a child
        self.rule = rule
        self.outputs = nn.ModuleList()

    def forward(self, x: Any) -> Any:
        """Return the module's result, a tensor or nested lists and tuples of tensors."""
        with torch.no_grad():
            result = self.hidden[0](x)
        inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in tensors_of(x)]
        channelwise = any(inner.of == "both" for inner in self.rule)
        kind = ChannelwiseOutput if channelwise else OpaqueOutput
        while len(self.outputs) < len(list(tensors_of(result))):
            self.outputs.append(kind())
        outputs = iter(self.outputs)

        def through_outputs(value: Any) -> Any:
            if isinstance(value, Tensor):
                return next(outputs)(value, inputs)
            if isinstance(value, list | tuple):
                return rebuilt(value, [through_outputs(v) for v in value])
            return value

        return through_outputs(result)


def rebuilt(value: Any, items: list[Any]) -> Any:
    """Return a list, tuple or named tuple of the kind of `value` with other items."""
    make = getattr(value, "_make", type(value))
    return make(items)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def replace_opaque_modules(
    model: nn.Module, opaque: Collection[str] = ()
) -> dict[str, OpaqueModule]:
    """Replace modules by stand-ins, in place.

    Args:
        model: the model to change.
        opaque: names of modules to replace; they get no rule. Blocks with a `channel_rule` are
            replaced as well, unless they lie inside a replaced module.

    Returns:
        The stand-ins by name.
    """
    stand_ins: dict[str, OpaqueModule] = {}
    for name, module in list(model.named_modules()):
        rule = getattr(module, "channel_rule", None)
        wanted = name in opaque or rule
        inside = any(name.startswith(f"{outer}.") for outer in stand_ins)
        if not name or inside or not wanted:
            continue
        layers = tuple(rule()) if rule and name not in opaque else ()
        stand_ins[name] = OpaqueModule(module, layers)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, stand_ins[name])
    return stand_ins

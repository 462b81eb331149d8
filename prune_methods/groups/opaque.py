"""Stands in for a module whose inside shall not be traced: a row that the library cannot follow, or
a block with its own rule.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from models.pruning_rules import InnerLayer


class OpaqueOutput(nn.Module):
    """One output of a stand-in, a single node of the graph: what goes in and what comes out are
    channels of their own.
    """

    channels = (0, 0)
    """Of input and output; known once it has run."""

    def forward(self, output: Tensor, inputs: list[Tensor]) -> Tensor:
        """`output` as if it had been computed from `inputs` in one operation."""
        self.channels = inputs[0].shape[1], output.shape[1]
        return _Link.apply(output, *inputs)


class ChannelwiseOutput(OpaqueOutput):
    """One channel comes out for each that goes in, so that they can only be cut together."""


class _Link(torch.autograd.Function):
    """(output, inputs) -> output, in the graph a function of the inputs; nothing is
    ever sent back.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, *inputs: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("a stand-in is for tracing only")


class _OutputPruner(tp.BasePruningFunc):
    """Tells the library which channels an output has; it never cuts one."""

    def prune_out_channels(self, layer: Any, idxs: Any) -> Any:
        return layer

    def prune_in_channels(self, layer: Any, idxs: Any) -> Any:
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return layer.channels[1]

    def get_in_channels(self, layer: Any) -> int:
        return layer.channels[0]


class _ChannelwiseOutputPruner(_OutputPruner):
    prune_in_channels = (
        _OutputPruner.prune_out_channels
    )  # how the library learns that both sides are one


OUTPUT_PRUNERS: dict[Any, Any] = {
    OpaqueOutput: _OutputPruner(),
    ChannelwiseOutput: _ChannelwiseOutputPruner(),
}


class OpaqueModule(nn.Module):
    """Computes what `module` computes, and shows the graph nothing but its outputs, one for each
    tensor that comes out.

    The outputs are made by the first run.
    """

    def __init__(self, module: nn.Module, rule: tuple[InnerLayer, ...]):
        """`rule`: how the module's inner layers follow its channels; without one nothing that it is
        tied to can be cut.
        """
        super().__init__()
        self.hidden = (module,)  # in a tuple, so that it is no child
        self.rule = rule
        self.outputs = nn.ModuleList()

    def forward(self, x: Any) -> Any:
        """Whatever the module takes -> whatever it gives."""
        with torch.no_grad():
            result = self.hidden[0](x)
        inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in tensors_of(x)]
        kind = ChannelwiseOutput if any(inner.of == "both" for inner in self.rule) else OpaqueOutput
        while len(self.outputs) < len(list(tensors_of(result))):
            self.outputs.append(kind())
        outputs = iter(self.outputs)

        def through_exits(value: Any) -> Any:
            if isinstance(value, Tensor):
                return next(outputs)(value, inputs)
            return (
                type(value)(through_exits(v) for v in value)
                if isinstance(value, list | tuple)
                else value
            )

        return through_exits(result)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def replace_opaque_modules(
    model: nn.Module, opaque: Collection[str] = ()
) -> dict[str, OpaqueModule]:
    """Replace the modules named in `opaque` and all blocks with a rule of their own, in place;
    gives the stand-ins by name.
    """
    found: dict[str, OpaqueModule] = {}
    for name, module in list(model.named_modules()):
        rule = getattr(module, "channel_rule", None)
        if (
            not name
            or any(name.startswith(f"{outer}.") for outer in found)
            or not (name in opaque or rule)
        ):
            continue
        found[name] = OpaqueModule(module, tuple(rule()) if rule and name not in opaque else ())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, found[name])
    return found

"""Which batch norm reads the output of which layer, and how often a module runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.engine.modes import evaluating


@dataclass
class Followed:
    """What one forward pass shows.

    Attributes:
        norm_after: layer -> batch norm that reads the layer's output as it is.
        calls: module -> number of calls, for the layers and all batch norms.
    """

    norm_after: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


def follow(model: nn.Module, x: Tensor, layers: Sequence[str]) -> Followed:
    """Run the model on images `x` in 0..1 and follow the outputs of the named layers."""
    found, outputs = Followed(), {}
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]

    def ran(name: str):
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[name] = output
            found.calls[name] = found.calls.get(name, 0) + 1

        return hook

    def reads(name: str):
        def hook(module: nn.Module, inputs: Any) -> None:
            found.calls[name] = found.calls.get(name, 0) + 1
            before = [layer for layer, output in outputs.items() if output is inputs[0]]
            found.norm_after.update(dict.fromkeys(before, name))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(ran(name)) for name in layers]
    handles += [model.get_submodule(name).register_forward_pre_hook(reads(name)) for name in norms]
    with evaluating(model), torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found

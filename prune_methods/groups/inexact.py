"""Inexact blocks: hold their values constant, so that the rest of a cut can still be proved.

A cut is proved by comparing the smaller model with the full one whose removed channels are zero. An
inexact block, such as one that takes a mean over channels, computes different values from a missing
channel and from a channel at zero, and everything behind the block would differ too. Such a block
declares `inexact = "why"`, and passes the values that it computes from all channels through
`models.pruning_rules.detach_channels`; otherwise the graph would couple the channels. The proof
runs both models with constants in place of these values, and compares everything else as usual. A
block that never calls `detach_channels` returns zeros in both models. The values that the proof
leaves out must still have the right shapes and be finite (`surgery.cut.largest_difference`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.pruning_rules import proving
from prune_methods.groups.opaque import rebuilt


def inexact_blocks(model: nn.Module) -> dict[str, str]:
    """Return the names of the inexact blocks of a model, each with the reason."""
    reasons = {name: getattr(module, "inexact", "") for name, module in model.named_modules()}
    return {name: reason for name, reason in reasons.items() if reason}


@contextmanager
def gates_fixed(model: nn.Module) -> Iterator[None]:
    """Hold constant what inexact blocks compute from all of their channels, while it is open."""
    blocks = [model.get_submodule(name) for name in inexact_blocks(model)]
    with proving() as running:

        def enter(module: nn.Module, inputs: Any) -> None:
            running.append(False)

        def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
            return output if running.pop() else _zeros(output)

        handles = [block.register_forward_pre_hook(enter) for block in blocks]
        handles += [block.register_forward_hook(leave) for block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _zeros(value: Any) -> Any:
    """Return zeros in the shape of a tensor, or of nested lists and tuples of tensors."""
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, list | tuple):
        return rebuilt(value, [_zeros(v) for v in value])
    return value

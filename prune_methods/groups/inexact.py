"""Blocks in which a channel counts for more than itself, as in a mean over channels: what of a cut
can still be proved.

Such a block says `inexact = "why"`. Without a channel it computes something else than with that
channel at zero, so that nothing behind it can be compared. What it computes from all channels it
passes through `models.pruning_rules.cut`, or the graph would tie them; a proof therefore runs both
models with constants in these places, and everything else is compared as ever. A block without a
`cut` gives zeros in both. What the proof leaves out must still have the right shapes and finite
values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.pruning_rules import proving


def inexact_blocks(model: nn.Module) -> dict[str, str]:
    """Name -> why, of the blocks that say so."""
    found = {name: getattr(module, "inexact", "") for name, module in model.named_modules()}
    return {name: reason for name, reason in found.items() if reason}


@contextmanager
def gates_fixed(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes nothing that depends on all channels of an inexact block."""
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
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    return type(value)(_zeros(v) for v in value) if isinstance(value, list | tuple) else value

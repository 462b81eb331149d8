"""What a block declares about its channels where the trace of its `forward` is wrong or impossible.

A block has four means, from the smallest to the largest:

- `detach_channels(tensor)` inside `forward` hides from the trace where a tensor came from.
- `no_prune = {"offset": "why"}`, a class attribute, names children whose outputs are never pruned.
- `unit_rule()`, a method, describes parts that exist only inside the block and are removed as a
  whole, such as the heads of an attention.
- `channel_rule()`, a method, replaces the trace of the block.

A class attribute `inexact = "why"` says that removing some channels changes the values of the
remaining ones; the proof after pruning then leaves that part out. See docs/pruning.md, "Blocks with
rules of their own".
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.log import deprecated

GATE = 0.5  # constant that stands for each detached value of an inexact block during a proof
_detached: ContextVar[list[Tensor] | None] = ContextVar("detached", default=None)
_inexact: ContextVar[list[bool] | None] = ContextVar("inexact", default=None)


@dataclass(frozen=True)
class InnerLayer:
    """Channels of a layer inside a block that are removed together with channels of the block.

    `channels[i]` of the layer belongs to `block_channels[i]` of the block. In a `unit_rule`,
    `block_channels[i]` is instead the number (0, 1, ...) of the unit that `channels[i]` belongs to,
    and `of` is not given.

    Args:
        layer: Name of the layer inside the block, such as `conv` or `branches.0.bn`.
        kind: `out` or `in` side of a convolution or linear layer, `depthwise`, or `norm`.
        channels: Channel indices of the layer.
        block_channels: As many channel indices of the block (or unit numbers, see above).
        of: `both` where input and output of the block are the same channels (one comes out for each
            that goes in); else `in` for the block's inputs or `out` for its outputs. Either all
            rules of a block say `both`, or none does.
    """

    layer: str
    kind: str
    channels: Sequence[int]
    block_channels: Sequence[int]
    of: str = "both"


def detach_channels(x: Tensor) -> Tensor:
    """Return `x`; while channels are traced, return a copy that hides where `x` came from.

    Call this function on a tensor that is used whatever its number of channels is: a gate, an
    offset, a mean over channels. A multiplication with the result then ties no channels. A layer
    before `x` whose width must stay as built belongs into `no_prune`.

    While a model is proved (see `proving`), an inexact block gets the constant `GATE` instead.
    """
    inexact, detached = _inexact.get(), _detached.get()
    if inexact:  # one entry for each open inexact block: True once the block has called this
        inexact[:] = [True] * len(inexact)
        return torch.full_like(x, GATE)
    if detached is None:
        return x
    if x.requires_grad:
        detached.append(x)
    return x.detach()


def cut(x: Tensor) -> Tensor:
    """Call `detach_channels` by its old name; log a deprecation line the first time."""
    deprecated("cut", "detach_channels")
    return detach_channels(x)


@contextmanager
def tracing() -> Iterator[list[Tensor]]:
    """Let `detach_channels` detach its tensors while the context is open.

    Yields:
        The list of the tensors as they were before they were detached, filled as `forward` runs; a
        tracer starts from them as well, so that their layers stay part of the graph.
    """
    detached: list[Tensor] = []
    token = _detached.set(detached)
    try:
        yield detached
    finally:
        _detached.reset(token)


@contextmanager
def proving() -> Iterator[list[bool]]:
    """Let `detach_channels` return the constant `GATE` inside inexact blocks.

    Yields:
        A list with one entry for each inexact block that is running. The caller appends False when
        such a block starts and removes the entry when the block ends; `detach_channels` sets the
        entries to True. While the list is empty, `detach_channels` returns its argument.
    """
    running: list[bool] = []
    token = _inexact.set(running)
    try:
        yield running
    finally:
        _inexact.reset(token)


def __getattr__(name: str) -> Any:
    """Return what an old name means today: blocks of users may import it."""
    if name == "Inner":
        deprecated("Inner", "InnerLayer")
        return InnerLayer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

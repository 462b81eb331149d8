"""What a block can say about its channels where the trace of its `forward` would say it wrongly or
not at all.

Four ways, from the smallest: `detach_channels(tensor)` inside `forward`; a class attribute
`no_prune = {"offset": "why"}`, children whose outputs are never cut; a method `unit_rule()` for
parts that exist inside the block only and go as a whole, as the heads of an attention; a method
`channel_rule()` that replaces the trace of the block. A class attribute `inexact = "why"` says that
removing channels changes more than these channels; the proof of a cut then leaves that part out.
See docs/pruning.md, "Blocks with rules of their own".
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.log import deprecated

GATE = 0.5  # what a cut value of an inexact block counts as in a proof
_severed: ContextVar[list[Tensor] | None] = ContextVar("severed", default=None)
_inexact: ContextVar[list[bool] | None] = ContextVar("inexact", default=None)


@dataclass(frozen=True)
class Inner:
    """Channels of a layer inside a block that go with channels of the block: `channels[i]` of the
    layer with `block_channels[i]`.

    In a `unit_rule` the second are no channels but the units 0, 1, ... that the first belong to,
    and there is no `of`.

    - `layer`: name inside the block (`conv`, `branches.0.bn`).
    - `kind`: `out` or `in` side of a convolution or linear layer, `depthwise`, or `norm`.
    - `of`: `both` where input and output of the block are the same channels (one comes out for each
      that goes in), else whether the block's inputs (`in`) or outputs (`out`) are meant. All rules
      of a block say `both`, or none does.
    """

    layer: str
    kind: str
    channels: Sequence[int]
    block_channels: Sequence[int]
    of: str = "both"


def detach_channels(x: Tensor) -> Tensor:
    """`x` itself; while channels are traced, a copy that hides where `x` came from.

    For what is used whatever the number of channels is: a gate, an offset, a mean over channels. A
    multiplication with it then ties no channels. A layer before it whose width must stay belongs
    into `no_prune`.
    """
    inexact, severed = _inexact.get(), _severed.get()
    if inexact:  # of each open block, whether it has come to a cut
        inexact[:] = [True] * len(inexact)
        return torch.full_like(x, GATE)
    if severed is None:
        return x
    if x.requires_grad:
        severed.append(x)
    return x.detach()


def cut(x: Tensor) -> Tensor:
    """Call `detach_channels`, whose old name this is; log a deprecation line the first time."""
    deprecated("cut", "detach_channels")
    return detach_channels(x)


@contextmanager
def tracing() -> Iterator[list[Tensor]]:
    """Makes `detach_channels` sever inside; gives the list of the tensors before the cuts, so that
    their layers stay part of the graph.
    """
    severed: list[Tensor] = []
    token = _severed.set(severed)
    try:
        yield severed
    finally:
        _severed.reset(token)


@contextmanager
def proving() -> Iterator[list[bool]]:
    """Makes `detach_channels` give a constant while the list that it gives is not empty: one entry
    for each inexact block that is running.
    """
    running: list[bool] = []
    token = _inexact.set(running)
    try:
        yield running
    finally:
        _inexact.reset(token)

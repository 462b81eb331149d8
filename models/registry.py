"""The tables of blocks and activations, and what a block is told about its place in a model."""

import ast
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from utils.errors import UserError
from utils.log import deprecated
from utils.registry import Registry

MAX_CHANNELS = 8192  # a typing error or a damaged file shall not eat the machine's memory
BLOCKS = Registry("block")
ACTIVATIONS = Registry("activation")
_follow: ContextVar[bool] = ContextVar("weights follow", default=False)

Act = str | bool
"""An activation as a YAML writes it: a name, `nn.Name(literals)`, or False for none; True is the
model's own.
"""

for _name in ("SiLU", "ReLU", "ReLU6", "LeakyReLU", "Hardswish", "Hardsigmoid", "Mish", "ELU"):
    ACTIVATIONS.register(_name)(partial(getattr(nn, _name), inplace=True))
for _name in ("GELU", "Sigmoid", "Tanh", "PReLU", "Softplus", "Identity"):
    ACTIVATIONS.register(_name)(getattr(nn, _name))

_ACTIVATION_TEXT = re.compile(
    r"(?:nn\.)?(?P<name>[A-Za-z]\w*)(?:\((?P<arguments>[\w.,=+\-' ]*)\))?"
)


@contextmanager
def awaiting_weights() -> Iterator[None]:
    """Around the building of a model whose weights are loaded right afterwards."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


def weights_follow() -> bool:
    """Whether a block that would download weights need not."""
    return _follow.get()


def activation(spec: Act) -> nn.Module:
    """A new activation module from `SiLU`, `nn.LeakyReLU(0.1)`, or False for none.

    Only registered names and literals count.
    """
    if spec is False:
        return nn.Identity()
    match = _ACTIVATION_TEXT.fullmatch(spec.strip()) if isinstance(spec, str) else None
    if match is None:
        raise UserError(
            f"{spec!r} is no activation; write a name or nn.Name(numbers), as nn.LeakyReLU(0.1)"
        )
    make: Callable[..., nn.Module] = ACTIVATIONS[match["name"]]
    try:
        call = ast.parse(f"f({match['arguments'] or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        values = [ast.literal_eval(a) for a in call.args]
        return make(*values, **{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, ValueError, TypeError) as error:
        raise UserError(
            f"{spec!r}: the arguments of this activation cannot be used: {error}"
        ) from None


@dataclass(frozen=True)
class BuildContext:
    """Where a block stands: all that `Block.from_yaml(context, *args)` may want to know beside the
    arguments of its row.
    """

    in_channels: tuple[int, ...]
    """Channels of each input."""
    in_strides: tuple[float, ...]
    """Pixels of the image per cell of each input."""
    nc: int = 80
    anchors: Any = 3
    """As in the YAML: a list a level of w, h, w, h ... in pixels, or a number of anchors a level.
    """
    width: float = 1.0
    act: str = "SiLU"
    repeats: int = 1
    """Depth-scaled.

    Blocks with `repeats_inside = True` read it; the others are put in a row that often.
    """

    @property
    def c1(self) -> int:
        """Channels of the only input; `UserError` where there are several."""
        if len(self.in_channels) != 1:
            raise UserError(f"takes one input, 'from' gives {len(self.in_channels)}")
        return self.in_channels[0]

    @property
    def head_channels(self) -> int:
        """Output channels of the detection layers, na x (5 + nc): never scaled."""
        na = self.anchors if isinstance(self.anchors, int) else len(self.anchors[0]) // 2
        return na * (self.nc + 5)

    def scale(self, channels: int) -> int:
        """Channels of a YAML row times the width multiple, rounded up to a multiple of 8;
        `UserError` beyond `MAX_CHANNELS`.
        """
        scaled = (
            channels if channels == self.head_channels else math.ceil(channels * self.width / 8) * 8
        )
        if not 0 < scaled <= MAX_CHANNELS:
            raise UserError(
                f"{channels} x width_multiple are {scaled} channels; expected 1 to {MAX_CHANNELS}"
            )
        return scaled

    def pick_act(self, act: Act | None) -> Act:
        """The activation of a row: its own, or the model's where the row says nothing or True."""
        return self.act if act is None or act is True else act


def __getattr__(name: str) -> Any:
    """Old names that a user's block may import."""
    if name == "Site":
        deprecated("Site", "BuildContext")
        return BuildContext
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

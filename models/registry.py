"""Registries of blocks and activations, and the context that a block is built in."""

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

from utils.errors import UserError, brief
from utils.log import deprecated
from utils.registry import Registry

MAX_CHANNELS = 8192  # keeps a typing error or a damaged file from filling the memory
LEAST_WIDTH = 16  # smaller numbers in a row are no widths
BLOCKS = Registry("block")
ACTIVATIONS = Registry("activation")
_follow: ContextVar[bool] = ContextVar("weights follow", default=False)

Act = str | bool
"""An activation as a YAML writes it: a name, `nn.Name(literals)`, False or True.

False means no activation, True the activation of the model.
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
    """Mark the building of a model whose weights are loaded right afterwards."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


def weights_follow() -> bool:
    """Return whether weights are loaded after building, so that a block need not download any."""
    return _follow.get()


def activation(spec: Act) -> nn.Module:
    """Return a new activation module from `SiLU`, `nn.LeakyReLU(0.1)`, or False for none.

    Only registered names with literals as arguments are accepted.

    Raises:
        UserError: For any other text.
    """
    if spec is False:
        return nn.Identity()
    match = _ACTIVATION_TEXT.fullmatch(spec.strip()) if isinstance(spec, str) else None
    if match is None:
        raise UserError(
            f"{brief(spec)} is no activation; write a name or nn.Name(numbers), as"
            " nn.LeakyReLU(0.1)"
        )
    make: Callable[..., nn.Module] = ACTIVATIONS[match["name"]]
    try:
        call = ast.parse(f"f({match['arguments'] or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        values = [ast.literal_eval(a) for a in call.args]
        return make(*values, **{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, ValueError, TypeError) as error:
        raise UserError(
            f"{brief(spec)}: the arguments of this activation cannot be used: {error}"
        ) from None


@dataclass(frozen=True)
class BuildContext:
    """What `Block.from_yaml(context, *args)` may need beside the arguments of its row."""

    in_channels: tuple[int, ...]
    """Number of channels of each input."""
    in_strides: tuple[float, ...]
    """Stride of each input: pixels of the image per cell."""
    nc: int = 80
    """Number of classes."""
    anchors: Any = 3
    """Anchors as in the YAML.

    Either a number of anchors for each level, or for each level a list w, h, w, h ... in pixels.
    """
    width: float = 1.0
    """Width multiple of the model."""
    act: str = "SiLU"
    """Activation of the model."""
    repeats: int = 1
    """Repeats of the row, scaled by the depth multiple.

    Blocks with `repeats_inside = True` read the number; any other block is built that often and
    chained.
    """

    @property
    def c1(self) -> int:
        """Number of channels of the only input; `UserError` where the row has several."""
        if len(self.in_channels) != 1:
            raise UserError(f"takes one input, 'from' gives {len(self.in_channels)}")
        return self.in_channels[0]

    @property
    def head_channels(self) -> int:
        """Output channels of each detection layer, na x (5 + nc): never scaled by the width."""
        if self.anchors is None:
            return 0
        na = self.anchors if isinstance(self.anchors, int) else len(self.anchors[0]) // 2
        return na * (self.nc + 5)

    def scale(self, channels: int) -> int:
        """Return the channels of a YAML row, scaled by the width multiple.

        The result is rounded up to a multiple of 8; `head_channels` stays as it is.

        Raises:
            UserError: Where the result is not in 1..MAX_CHANNELS.
        """
        scaled = channels
        if channels != self.head_channels:
            scaled = math.ceil(channels * self.width / 8) * 8
        if not 0 < scaled <= MAX_CHANNELS:
            raise UserError(
                f"{channels} x width_multiple are {scaled} channels; expected 1 to {MAX_CHANNELS}"
            )
        return scaled

    def names_width(self, value: Any) -> bool:
        """Return True where a row argument is the width of the inputs, written before scaling.

        Numbers below `LEAST_WIDTH` and odd ones are taken for what else blocks are given:
        kernel sizes, factors, reductions.
        """
        if type(value) is not int or value < LEAST_WIDTH or value % 2 or value > MAX_CHANNELS:
            return False
        return set(self.in_channels) in ({value}, {math.ceil(value * self.width / 8) * 8})

    def pick_act(self, act: Act | None) -> Act:
        """Return the row's own activation, or the model's where the row says nothing or True."""
        return self.act if act is None or act is True else act


def __getattr__(name: str) -> Any:
    """Return what an old name means today: blocks of users may import it."""
    if name == "Site":
        deprecated("Site", "BuildContext")
        return BuildContext
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

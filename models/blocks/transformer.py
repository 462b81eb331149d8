"""C3 with a transformer in place of its bottlenecks (yolov5s-transformer).

Papers: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; Vaswani et al., "Attention
Is All You Need", 2017.

Structure: the cells of the map are tokens. A linear layer of the tokens is added to them as their
learned positions. Each of n layers adds attention of 4 heads over all cells, then two linear layers
one after another. The rest is C3: a 1x1 on each of two paths, joined, 1x1.
Shapes: (N, C1, H, W) -> (N, C2, H, W); time and memory of the attention grow with (H W)^2.
What differs: as in YOLOv5, a layer has no layer norm, no dropout, no activation between its two
linear layers, and linear layers of its own before those of the attention. The deployed form folds
each such pair into one layer.

    - [-1, 3, C3TR, [1024]]  # c2, shortcut, g, e; the repeats are n; shortcut and g have no effect

Pruning: the channels of the other path and of the output. Tokens keep their width: a residual runs
through all layers, and each head reads all channels.
"""

import torch
from torch import Tensor, nn

from models.blocks.csp import C3
from models.pruning_rules import detach_channels
from models.registry import BLOCKS, Act

HEADS = 4
TOKENS = "tokens keep their width: each head of the attention reads all channels"


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return the attention of every token to every other, (N, L, C), from three of that shape."""
    query, key, value = (
        part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value)
    )  # (N, heads, L, C / heads)
    weights = (query * query.shape[3] ** -0.5 @ key.transpose(2, 3)).softmax(3)
    return (weights @ value).transpose(1, 2).flatten(2)


class DeployedTransformerLayer(nn.Module):
    """A layer with each pair of linear layers folded into one: the form after `fuse()`."""

    def __init__(self, qkv: nn.Linear, project: nn.Linear, feed: nn.Linear, heads: int):
        super().__init__()
        self.qkv, self.project, self.feed, self.heads = qkv, project, feed, heads

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, L, C) to the same shape."""
        x = x + self.project(attend(*self.qkv(x).chunk(3, 2), heads=self.heads))
        return x + self.feed(x)


class TransformerLayer(nn.Module):
    """Attention and two linear layers, a residual around each."""

    def __init__(self, c: int, heads: int):
        super().__init__()
        self.q = nn.Linear(c, c, bias=False)
        self.k = nn.Linear(c, c, bias=False)
        self.v = nn.Linear(c, c, bias=False)
        self.ma = nn.MultiheadAttention(c, heads)  # holds the weights under official names
        self.fc1 = nn.Linear(c, c, bias=False)
        self.fc2 = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, L, C) to the same shape."""
        inner = zip(
            (self.q, self.k, self.v),
            self.ma.in_proj_weight.chunk(3),
            self.ma.in_proj_bias.chunk(3),
            strict=True,
        )
        parts = (nn.functional.linear(first(x), weight, bias) for first, weight, bias in inner)
        out = self.ma.out_proj
        attended = attend(*parts, heads=self.ma.num_heads)
        x = x + nn.functional.linear(attended, out.weight, out.bias)
        return x + self.fc2(self.fc1(x))

    def fuse(self) -> nn.Module:
        """Return the deployed form."""
        weights = self.ma.in_proj_weight.detach().chunk(3)
        pairs = zip(weights, (self.q, self.k, self.v), strict=True)
        qkv = torch.cat([second @ first.weight.detach() for second, first in pairs])
        project = self.ma.out_proj
        return DeployedTransformerLayer(
            linear(qkv, self.ma.in_proj_bias.detach()),
            linear(project.weight.detach(), project.bias.detach()),
            linear(self.fc2.weight.detach() @ self.fc1.weight.detach()),
            self.ma.num_heads,
        )


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a linear layer with copies of weight (out, in) and bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


class TransformerBlock(nn.Module):
    """Tokens from a map, n layers, and back."""

    def __init__(self, c: int, heads: int, n: int):
        super().__init__()
        self.linear = nn.Linear(c, c)
        self.tr = nn.Sequential(*(TransformerLayer(c, heads) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.tr(tokens + self.linear(tokens))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


@BLOCKS.register()
class C3TR(C3):
    """C3 whose inner path is a transformer over the cells of the map."""

    no_prune = {"cv1": TOKENS, "m": TOKENS}

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        act: Act = "SiLU",
    ):
        super().__init__(c1, c2, 0, shortcut, g, e, act)
        hidden = int(c2 * e)
        if hidden % HEADS:
            raise ValueError(
                f"its {hidden} inner channels (e x c2) are no multiple of {HEADS} heads"
            )
        self.m = TransformerBlock(hidden, HEADS, n)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C1, H, W) to (N, C2, H, W)."""
        cells = self.cv1(x)
        # what the transformer adds; the sum keeps the place of its channels in what is joined
        inner = cells + detach_channels(self.m(detach_channels(cells)) - cells)
        return self.cv3(torch.cat((inner, self.cv2(x)), 1))

"""One flat list of all prunable channels of a model, and which of them every channel of every layer
is.

Costs, scores and the cut all follow from it: a layer keeps the channels whose entry in the flat
mask is set.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune_methods.groups.graph import ChannelGroup

Masks = dict[str, np.ndarray]
"""Group name -> bool per channel, True = stays."""


def norm_width(norm: _BatchNorm | nn.GroupNorm) -> int:
    """Channels of a norm, with parameters or without."""
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


class ChannelIndex:
    """`outs[name]` and `ins[name]`: int (channels,) indices into the flat mask of a layer's outputs
    and inputs.

    The flat mask has one entry per channel of each group, group after group, and a last one that is
    always True: it stands for all channels that cannot be cut. Norms, depthwise convolutions and
    bare parameters have `outs` only.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]):
        self.groups = tuple(groups)
        self.sizes = np.array([g.size for g in groups], dtype=int)
        self.starts = np.concatenate(([0], np.cumsum(self.sizes)))[:-1].astype(int)
        self.per_channel = np.array([g.per_channel for g in groups], dtype=int)
        self.total = int(self.sizes.sum())
        self.group_of = np.repeat(np.arange(len(groups)), self.sizes)
        self.outs: dict[str, np.ndarray] = {}
        self.ins: dict[str, np.ndarray] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                outputs, inputs = module.weight.shape[:2]
                self.outs[name] = self._fixed(outputs)
                if not (isinstance(module, nn.Conv2d) and module.groups > 1):
                    self.ins[name] = self._fixed(inputs)
            elif isinstance(module, _BatchNorm | nn.GroupNorm):
                self.outs[name] = self._fixed(norm_width(module))
        sizes = {name: p.shape[1 if p.dim() > 1 else 0] for name, p in model.named_parameters()}
        for group, start in zip(groups, self.starts, strict=True):
            for member in group.members:
                if member.kind == "param":
                    self.outs.setdefault(member.name, self._fixed(sizes[member.name]))
                side = self.ins if member.kind == "in" else self.outs
                side[member.name][member.layer_channels] = start + member.group_channels

    def _fixed(self, channels: int) -> np.ndarray:
        return np.full(channels, self.total)

    def all_kept(self) -> np.ndarray:
        """The flat mask of the whole model."""
        return np.ones(self.total + 1, dtype=bool)

    def flatten(self, masks: Masks) -> np.ndarray:
        """Masks by group -> the flat mask."""
        return np.concatenate([*(masks[g.name] for g in self.groups), [True]])

    def by_group(self, keep: np.ndarray) -> Masks:
        """The flat mask -> masks by group."""
        return {
            g.name: keep[s : s + g.size].copy()
            for g, s in zip(self.groups, self.starts, strict=True)
        }

    def counts(self, keep: np.ndarray) -> np.ndarray:
        """Channels that are left in each group."""
        return (
            np.add.reduceat(keep[:-1].astype(int), self.starts)
            if self.total
            else np.zeros(0, dtype=int)
        )

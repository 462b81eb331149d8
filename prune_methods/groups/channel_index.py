"""One flat list of all prunable channels of a model, and the place of every layer's channels in it.

Scores, costs, masks and the cut all follow from the index: a layer keeps the channels whose entry
in the flat mask is set.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.widths import channel_dim, channels_of
from prune_methods.groups.graph import ChannelGroup

Array = np.ndarray
Masks = dict[str, np.ndarray]
"""Group name -> bool per channel, True = stays."""


class ChannelIndex:
    """Number the channels of all groups of a model.

    The flat mask has one entry per channel of each group, group after group, and a last entry that
    is always True. The last entry stands for all channels that cannot be cut.

    Attributes:
        model: the model; never changed.
        groups: its groups, in the order of the flat mask.
        sizes, starts: int (groups,), channels of each group and its first flat number.
        per_channel: int (groups,), see `ChannelGroup.per_channel`.
        total: channels of all groups together.
        group_of: int (total,), number of the group of each flat channel.
        outs, ins: layer name -> int (channels,), flat numbers of the layer's outputs and inputs.
            Norms, depthwise convolutions and bare parameters have `outs` only.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]):
        self.model = model
        self.groups = tuple(groups)
        self.sizes = np.array([g.size for g in groups], dtype=int)
        self.starts = np.concatenate(([0], np.cumsum(self.sizes)))[:-1].astype(int)
        self.per_channel = np.array([g.per_channel for g in groups], dtype=int)
        self.total = int(self.sizes.sum())
        self.group_of = np.repeat(np.arange(len(groups)), self.sizes)
        self.outs: dict[str, Array] = {}
        self.ins: dict[str, Array] = {}
        self._list_layers()
        self._place_groups()

    def of(self, model: nn.Module) -> "ChannelIndex":
        """Return the same index for a copy of the model."""
        return ChannelIndex(model, self.groups)

    def all_kept(self) -> Array:
        """Return the flat mask of the whole model."""
        return np.ones(self.total + 1, dtype=bool)

    def flatten(self, masks: Masks) -> Array:
        """Turn masks by group into the flat mask."""
        return np.concatenate([*(masks[g.name] for g in self.groups), [True]])

    def by_group(self, keep: Array) -> Masks:
        """Turn the flat mask into masks by group."""
        return {g.name: keep[self.span(i)].copy() for i, g in enumerate(self.groups)}

    def counts(self, keep: Array) -> Array:
        """Return the number of channels that a flat mask keeps of each group."""
        if not self.total:
            return np.zeros(0, dtype=int)
        return np.add.reduceat(keep[:-1].astype(int), self.starts)

    def span(self, group: int) -> slice:
        """Return the flat channels of a group, by the group's number."""
        return slice(self.starts[group], self.starts[group] + self.sizes[group])

    def within_group(self) -> Array:
        """Return the place of each flat channel in its group, int (total,)."""
        return np.arange(self.total) - self.starts[self.group_of]

    def _list_layers(self) -> None:
        """Enter every layer, all channels as fixed."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                outputs, inputs = channels_of(module)
                self.outs[name] = self._fixed(outputs)
                if not (isinstance(module, nn.Conv2d) and module.groups > 1):
                    self.ins[name] = self._fixed(inputs)
            elif isinstance(module, _BatchNorm | nn.GroupNorm):
                self.outs[name] = self._fixed(channels_of(module)[0])

    def _place_groups(self) -> None:
        """Enter the flat numbers of the channels that are in a group."""
        parameters = self.model.named_parameters()
        sizes = {name: p.shape[channel_dim(p)] for name, p in parameters}
        for group, start in zip(self.groups, self.starts, strict=True):
            for member in group.members:
                if member.kind == "param":
                    self.outs.setdefault(member.name, self._fixed(sizes[member.name]))
                side = self.ins if member.kind == "in" else self.outs
                side[member.name][member.layer_channels] = start + member.group_channels

    def _fixed(self, channels: int) -> Array:
        return np.full(channels, self.total)

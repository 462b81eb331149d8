"""Channels that one group norm takes a mean over go together, so that the others are normalised as
before.

`nn.GroupNorm(16, 128)` has 16 groups of 8 channels. A cut takes whole groups of it: 8 channels at
once, `num_groups` shrinks, and what stays has the mean and variance that it had. (With fewer
channels in each of 16 groups, every channel would change.)
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from prune_methods.groups.graph import ChannelGroup


def merge_by_group_norm(
    group: ChannelGroup, modules: Mapping[str, nn.Module]
) -> ChannelGroup | str:
    """The group with bundles for channels where group norms need that (limits and scores are per
    bundle), or why it must stay.
    """
    label = np.arange(group.size)
    for member in group.members:
        norm = modules.get(member.name)
        if not isinstance(norm, nn.GroupNorm):
            continue
        together = norm.num_channels // norm.num_groups
        for number in np.unique(member.layer_channels // together):
            inside = member.layer_channels // together == number
            if inside.sum() != together:
                return (
                    f"{member.name} (GroupNorm) takes one mean over channels of several groups,"
                    " which cannot go together"
                )
            labels = label[member.group_channels[inside]]
            label[np.isin(label, labels)] = labels.min()
    kept, bundle = np.unique(label, return_inverse=True)
    if len(kept) == group.size:
        return group
    members = tuple(replace(m, group_channels=bundle[m.group_channels]) for m in group.members)
    return ChannelGroup(group.name, len(kept), members)

"""Merge channels that one group norm takes a mean over, so that they are only removed together.

`nn.GroupNorm(16, 128)` has 16 norm groups of 8 channels. A cut removes whole norm groups, 8
channels at once, and `num_groups` shrinks; the remaining channels keep their mean and variance. If
each of the 16 norm groups lost some of its channels instead, every channel would change.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from prune_methods.groups.graph import ChannelGroup


def merge_by_group_norm(
    group: ChannelGroup, modules: Mapping[str, nn.Module]
) -> ChannelGroup | str:
    """Merge the channels of a group into bundles that no group norm divides.

    A bundle counts as one channel of the new group, for limits and scores alike.

    Args:
        group: coupled channels.
        modules: modules of the model by name.

    Returns:
        The group itself where no channels need merging, the group of bundles, or the reason why the
        group cannot be pruned.
    """
    label = np.arange(group.size)  # channels with the same label are one bundle
    for member in group.members:
        norm = modules.get(member.name)
        if not isinstance(norm, nn.GroupNorm):
            continue
        width = norm.num_channels // norm.num_groups
        norm_group = member.layer_channels // width
        for number in np.unique(norm_group):
            inside = norm_group == number
            if inside.sum() != width:
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

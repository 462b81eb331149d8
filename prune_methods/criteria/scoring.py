"""Scores of all channels of a masked model, without cutting it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prune_methods.criteria.base import Criterion, GateCriterion, GroupCriterion
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.groups.graph import PRODUCERS, ChannelGroup, Member, Skipped
from utils.errors import UserError

Evidence = Mapping[str, np.ndarray]
"""Saliency by layer, float64, summed over the kernels: (outputs, inputs) of a convolution,
(channels,) of a norm, or of any layer whose outputs were looked at. By group, (channels,), where
the criterion is a `GateCriterion`."""


def counted_weights(
    model: nn.Module, groups: Sequence[ChannelGroup], criterion: Criterion
) -> dict[str, Tensor]:
    """Return the weights of all coupled layers that the criterion counts, by layer name.

    A norm without parameters has none and is left out.
    """
    members = [m for g in groups for m in g.members if m.kind in criterion.kinds]
    names = dict.fromkeys(m.name for m in members)  # a dict keeps the order
    weights = {name: model.get_submodule(name).weight for name in names}
    return {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}


def countable(
    groups: Sequence[ChannelGroup], criterion: Criterion
) -> tuple[list[ChannelGroup], list[Skipped]]:
    """Split groups into those that the criterion can score, and the layers of the others.

    A group cannot be scored where the criterion counts none of its layers.
    """
    found: list[ChannelGroup] = []
    skipped: list[Skipped] = []
    kinds = ", ".join(sorted(criterion.kinds))
    for group in groups:
        if any(m.kind in criterion.kinds for m in group.members):
            found.append(group)
        else:
            reason = f"nothing that the method counts ({kinds}) is coupled to it"
            skipped += [Skipped(m.name, reason) for m in group.members if m.kind in PRODUCERS]
    return found, skipped


def kernel_sums(saliency: Tensor) -> Tensor:
    """Sum over the kernel: shape of a weight -> float64 (outputs, inputs) or (channels,)."""
    saliency = saliency.double()
    return saliency.flatten(2).sum(2) if saliency.dim() > 2 else saliency


class GroupScores:
    """Scores of the channels of all groups, for any mask.

    The saliency of every layer is summed once over the kernels; sums of a masked model are
    products of these tables with the mask. A `GroupCriterion` gets its slices instead.
    """

    def __init__(self, index: ChannelIndex, criterion: Criterion, evidence: Evidence | None = None):
        """Prepare the tables: from `evidence` (see gradients.py), or without it from the weights.

        `UserError` where the criterion counts no layer of some group.
        """
        self.index, self.criterion = index, criterion
        if lost := countable(index.groups, criterion)[1]:
            raise UserError(
                f"pruning: {lost[0].layer}: {lost[0].reason}; leave such groups out with"
                " `Prunable.for_criterion`"
            )
        weights = counted_weights(index.model, index.groups, criterion)
        self._slices: dict[str, np.ndarray] = {}
        self.tables: Evidence = {}
        if isinstance(criterion, GroupCriterion):
            self._slices = {n: w.detach().double().cpu().numpy() for n, w in weights.items()}
        else:
            self.tables = self._of_weights(weights) if evidence is None else evidence
        known = self._slices or self.tables
        self._members = [
            [m for m in g.members if m.kind in criterion.kinds and m.name in known]
            for g in index.groups
        ]

    def _of_weights(self, weights: Mapping[str, Tensor]) -> Evidence:
        with torch.no_grad():
            sums = {n: kernel_sums(self.criterion.saliency(w)) for n, w in weights.items()}
        return {name: table.cpu().numpy() for name, table in sums.items()}

    def scores(self, keep: np.ndarray) -> np.ndarray:
        """Return the scores with this flat mask: float64 (total,), +inf for channels
        gone already.
        """
        scores = np.full(self.index.total, np.inf)
        gated = isinstance(self.criterion, GateCriterion)
        sums = self._sums(keep) if self.tables and not gated else {}
        for number, group in enumerate(self.index.groups):
            span = self.index.span(number)
            left = np.flatnonzero(keep[span])
            if isinstance(self.criterion, GroupCriterion):
                found = self.criterion.score_group(group, self._gather(number, keep), keep[span])
            elif gated:
                found = self.criterion.score(self.tables[group.name][None, left])
            else:
                found = self.criterion.score(self._slice_sums(number, sums, left))
            name = type(self.criterion).__name__
            assert found.shape == left.shape and np.isfinite(found).all(), f"{name}: bad scores"
            scores[span.start + left] = found
        return scores

    def _slice_sums(
        self, number: int, sums: Mapping[tuple[str, str], np.ndarray], left: np.ndarray
    ) -> np.ndarray:
        """Return float64 (coupled layers, channels left): the sums over each slice of a group."""
        members, size = self._members[number], self.index.groups[number].size
        slices = [
            np.bincount(m.group_channels, sums[m.name, m.kind][m.layer_channels], size)[left]
            for m in members
        ]
        each = self.index.per_channel[number]
        return np.array(slices).reshape(len(members), len(left)) / each

    def _gather(self, number: int, keep: np.ndarray) -> list[np.ndarray]:
        """Return of each coupled layer of a group the slices (group.size, values), masked."""
        size = self.index.groups[number].size
        return [self._slices_of(member, size, keep) for member in self._members[number]]

    def _slices_of(self, member: Member, size: int, keep: np.ndarray) -> np.ndarray:
        """Return the slices of one layer; several layer channels of a group channel are joined."""
        weight, index = self._slices[member.name], self.index
        weight = weight.reshape(len(weight), -1) if weight.ndim == 1 else weight
        if member.kind == "in":
            weight = np.swapaxes(weight, 0, 1)
        other = index.outs if member.kind == "in" else index.ins
        if member.name in other:
            there = keep[other[member.name]]
            weight = weight * there.reshape(1, -1, *[1] * (weight.ndim - 2))
        own = index.ins if member.kind == "in" else index.outs
        weight = weight * keep[own[member.name]].reshape(-1, *[1] * (weight.ndim - 1))
        rows = weight.reshape(len(weight), -1)[member.layer_channels]
        return _joined(rows, member.group_channels, size)

    def _sums(self, keep: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """Sum the slices of the masked layers, by (layer, kind).

        `einsum` rather than `@`: the same bits on any number of threads, and no threads that wait
        for products this small.
        """
        sums: dict[tuple[str, str], np.ndarray] = {}
        weights = keep.astype(np.float64)
        for name, kind in {(m.name, m.kind) for members in self._members for m in members}:
            table = self.tables[name]
            if kind == "norm" or table.ndim == 1:
                sums[name, kind] = table
            elif kind == "depthwise":
                sums[name, kind] = table[:, 0]
            elif kind == "out":
                sums[name, kind] = np.einsum("oi,i->o", table, weights[self.index.ins[name]])
            else:
                sums[name, kind] = np.einsum("oi,o->i", table, weights[self.index.outs[name]])
        return sums


def _joined(rows: np.ndarray, group_channels: np.ndarray, size: int) -> np.ndarray:
    """Put rows (layer channels, values) side by side by group channel: (size, values x most)."""
    counts = np.bincount(group_channels, minlength=size)
    most = int(counts.max(initial=1))
    joined = np.zeros((size, most, rows.shape[1]))
    order = np.argsort(group_channels, kind="stable")
    place = np.concatenate([np.arange(n) for n in counts]) if len(order) else order
    joined[group_channels[order], place] = rows[order]
    return joined.reshape(size, -1)

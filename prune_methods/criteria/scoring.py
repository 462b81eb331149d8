"""Scores of all channels of a masked model, without cutting it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prune_methods.criteria.base import Criterion
from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import PRODUCERS, ChannelGroup, Skipped
from utils.errors import UserError

Evidence = Mapping[str, np.ndarray]
"""Saliency by layer, float64, summed over the kernels: (outputs, inputs) a convolution, (channels,)
a norm.
"""


def counted_weights(
    model: nn.Module, groups: Sequence[ChannelGroup], criterion: Criterion
) -> dict[str, Tensor]:
    """The weights of all coupled layers that the criterion counts, by layer name; a norm may have
    none.
    """
    names = {
        m.name: None for g in groups for m in g.members if m.kind in criterion.kinds
    }  # a dict keeps the order
    weights = {name: model.get_submodule(name).weight for name in names}
    return {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}


def countable(
    groups: Sequence[ChannelGroup], criterion: Criterion
) -> tuple[list[ChannelGroup], list[Skipped]]:
    """The groups that the criterion can score, and the layers of the others: those in which it
    counts no layer.
    """
    found: list[ChannelGroup] = []
    skipped: list[Skipped] = []
    for group in groups:
        if any(m.kind in criterion.kinds for m in group.members):
            found.append(group)
        else:
            reason = (
                f"nothing that the method counts ({', '.join(sorted(criterion.kinds))}) is coupled"
                " to it"
            )
            skipped += [Skipped(m.name, reason) for m in group.members if m.kind in PRODUCERS]
    return found, skipped


def kernel_sums(saliency: Tensor) -> Tensor:
    """Of a weight's shape -> (outputs, inputs) or (channels,), float64."""
    saliency = saliency.double()
    return saliency.flatten(2).sum(2) if saliency.dim() > 2 else saliency


class GroupScores:
    """Saliency of every layer, summed once over the kernels.

    The sums of a masked model are products of these tables with the mask.
    `evidence` is what gradients.py gathered; without it the tables come from the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        index: ChannelIndex,
        criterion: Criterion,
        evidence: Evidence | None = None,
    ):
        self.index, self.criterion = index, criterion
        if lost := countable(index.groups, criterion)[1]:
            raise UserError(
                f"pruning: {lost[0].layer}: {lost[0].reason}; leave such groups out with"
                " `countable`"
            )
        self.tables = self._of_weights(model) if evidence is None else evidence
        self._members = [
            [m for m in g.members if m.kind in criterion.kinds and m.name in self.tables]
            for g in index.groups
        ]

    def _of_weights(self, model: nn.Module) -> Evidence:
        with torch.no_grad():
            weights = counted_weights(model, self.index.groups, self.criterion)
            return {
                name: kernel_sums(self.criterion.saliency(weight)).cpu().numpy()
                for name, weight in weights.items()
            }

    def scores(self, keep: np.ndarray) -> np.ndarray:
        """Float64 per flat channel (without the last entry), +inf where it is gone already."""
        sums = self._sums(keep)
        scores = np.full(self.index.total, np.inf)
        index = self.index
        for group, start, each, members in zip(
            index.groups, index.starts, index.per_channel, self._members, strict=True
        ):
            left = np.flatnonzero(keep[start : start + group.size])
            slices = [
                np.bincount(m.group_channels, sums[m.name, m.kind][m.layer_channels], group.size)[
                    left
                ]
                for m in members
            ]
            found = self.criterion.score(np.array(slices).reshape(len(members), len(left)) / each)
            assert found.shape == left.shape and np.isfinite(found).all(), (
                f"{type(self.criterion).__name__}: bad scores"
            )
            scores[start + left] = found
        return scores

    def _sums(self, keep: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """Sums of the slices of the masked layers by (layer, kind).

        `einsum` rather than `@`: the same bits on any number of threads, and no threads that wait
        for products this small.
        """
        sums: dict[tuple[str, str], np.ndarray] = {}
        weights = keep.astype(np.float64)
        for name, kind in {(m.name, m.kind) for members in self._members for m in members}:
            table = self.tables[name]
            if kind == "norm":
                sums[name, kind] = table
            elif kind == "depthwise":
                sums[name, kind] = table[:, 0]
            elif kind == "out":
                sums[name, kind] = np.einsum("oi,i->o", table, weights[self.index.ins[name]])
            else:
                sums[name, kind] = np.einsum("oi,o->i", table, weights[self.index.outs[name]])
        return sums


def scores(
    model: nn.Module,
    groups: list[ChannelGroup],
    criterion: Criterion,
    masks: Masks | None = None,
    evidence: Evidence | None = None,
) -> dict[str, np.ndarray]:
    """Float64 score per channel of each group, by group name; +inf where `masks` say that it is
    gone.
    """
    index = ChannelIndex(model, groups)
    keep = index.all_kept() if masks is None else index.flatten(masks)
    flat = GroupScores(model, index, criterion, evidence).scores(keep)
    return {g.name: flat[s : s + g.size] for g, s in zip(groups, index.starts, strict=True)}

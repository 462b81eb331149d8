"""Scores of all channels of a masked model, without cutting it."""

import numpy as np
import torch
from torch import nn

from prune_methods.base import Criterion
from prune_methods.graph import ChannelGroup
from prune_methods.wiring import Masks, Wiring


class SliceSums:
    """Saliency of every layer, summed once over the kernels: (outputs, inputs) a convolution, (channels,) a norm.

    The sums of a masked model are then products of these tables with the mask.
    """

    def __init__(self, model: nn.Module, wiring: Wiring, criterion: Criterion):
        self.wiring, self.criterion = wiring, criterion
        wanted = {m.name for g in wiring.groups for m in g.members if m.kind in criterion.kinds}
        self.tables: dict[str, np.ndarray] = {}
        with torch.no_grad():
            for name in wanted:
                weight = model.get_submodule(name).weight
                if isinstance(weight, torch.Tensor):  # a norm may have none
                    table = criterion.saliency(weight).double()
                    self.tables[name] = (table.flatten(2).sum(2) if table.dim() > 2 else table).cpu().numpy()
        self._members = [[m for m in g.members if m.kind in criterion.kinds and m.name in self.tables] for g in wiring.groups]

    def scores(self, keep: np.ndarray) -> np.ndarray:
        """Float64 per flat channel (without the last entry), +inf where it is gone already."""
        sums = self._sums(keep)
        scores = np.full(self.wiring.total, np.inf)
        for group, start, members in zip(self.wiring.groups, self.wiring.starts, self._members, strict=True):
            left = np.flatnonzero(keep[start : start + group.size])
            slices = [np.bincount(m.group_channels, sums[m.name, m.kind][m.layer_channels], group.size)[left] for m in members]
            found = self.criterion.score(np.array(slices).reshape(len(members), len(left)))
            assert found.shape == left.shape and np.isfinite(found).all(), f"{type(self.criterion).__name__}: bad scores"
            scores[start + left] = found
        return scores

    def _sums(self, keep: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """Sums of the slices of the masked layers by (layer, kind).

        `einsum` rather than `@`: the same bits on any number of threads, and no threads that wait for products this small.
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
                sums[name, kind] = np.einsum("oi,i->o", table, weights[self.wiring.ins[name]])
            else:
                sums[name, kind] = np.einsum("oi,o->i", table, weights[self.wiring.outs[name]])
        return sums


def scores(
    model: nn.Module, groups: list[ChannelGroup], criterion: Criterion, masks: Masks | None = None
) -> dict[str, np.ndarray]:
    """Float64 score per channel of each group, by group name; +inf where `masks` say that it is gone."""
    wiring = Wiring(model, groups)
    keep = wiring.all_kept() if masks is None else wiring.flatten(masks)
    flat = SliceSums(model, wiring, criterion).scores(keep)
    return {g.name: flat[s : s + g.size] for g, s in zip(groups, wiring.starts, strict=True)}

"""Which channels of the uncut model's maps a cut model has, module by module."""

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import TRACE_SIZE
from prune_methods.groups.inexact import gates_fixed
from prune_methods.surgery.cut import TOLERANCE, zero_channels
from utils.engine.modes import evaluating

Map = tuple[Tensor, str]
"""A map (1, C, H, W), and the layer that ran last when the map was ready."""


def kept_channels(
    index: ChannelIndex, masks: Masks, smaller: nn.Module
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the kept channels of the map of every module for which they are known.

    A module's map has the channels of the layer that ran last within it. That is true of most
    blocks, and is proved for each: the map must equal the kept channels of the map of the model
    whose removed channels are zero.

    Args:
        index: the channels of the uncut model.
        masks: channels that were kept.
        smaller: the cut model, not compensated.

    Returns:
        Module name -> int32 (channels of the cut module,), where modules of one layer share a
            tensor; and module name -> number of channels of the uncut module's map.
    """
    zeroed, layers = zero_channels(index, masks), set(index.outs)
    parameter = next(zeroed.parameters())
    x = torch.rand(1, 3, TRACE_SIZE, TRACE_SIZE, generator=torch.Generator().manual_seed(0))
    whole, cut = (_maps(model, x.to(parameter), layers) for model in (zeroed, smaller))
    keep = index.flatten(masks)
    of_layer = {name: _chosen(keep[outs]) for name, outs in index.outs.items()}
    kept = {
        name: of_layer[layer]
        for name, (ours, layer) in cut.items()
        if layer and name in whole and _agree(ours, whole[name][0], of_layer[layer])
    }
    return kept, {name: whole[name][0].shape[1] for name in kept}


def _chosen(keep: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(keep).astype(np.int32))


def _agree(ours: Tensor, theirs: Tensor, kept: Tensor) -> bool:
    """Return whether a cut map is made of the kept channels of the zeroed one."""
    if not len(kept) == ours.shape[1] <= theirs.shape[1] or int(kept[-1]) >= theirs.shape[1]:
        return False
    chosen = theirs.index_select(1, kept.to(theirs.device))
    if chosen.shape != ours.shape:
        return False
    return float((chosen - ours).abs().max()) <= TOLERANCE * max(float(chosen.abs().max()), 1e-12)


@torch.no_grad()
def _maps(model: nn.Module, x: Tensor, layers: set[str]) -> dict[str, Map]:
    """Return the maps of all modules that run once, in eval mode."""
    found: dict[str, list[Map]] = {}
    last = [""]

    def record(name: str):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if name in layers:
                last[0] = name
            if isinstance(output, Tensor) and output.dim() == 4:
                found.setdefault(name, []).append((output.clone(), last[0]))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(record(name)).remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(gates_fixed(model))
        model(x)
    return {name: maps[0] for name, maps in found.items() if name and len(maps) == 1}

"""What a removed channel still said: its constant part moves into the layers that read it.

A channel whose batch norm scale is near 0 is not silent, it says act(beta) everywhere (Ye et al.,
Rethinking the Smaller-Norm-Less-Informative Assumption, ICLR 2018, arXiv 1802.00124, section 4).
Cutting it takes that constant away from every reader. With a larger scale act(beta) is not even the
mean of what is lost - SiLU is curved, beta often negative - and folding it made dense models worse:
such channels are left alone.

At zero-padded borders the fold is inexact: there a reader sees fewer than all of its taps, the
folded constant counts them all.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import ChannelGroup, raw_outputs

PROBE_SIZE = 256  # pixels: maps of the coarsest level are large enough to have an inside
SILENT = (
    0.1  # |gamma| below it: the mean of SiLU(beta + gamma z) is within .25 gamma^2 of SiLU(beta)
)
SAME = 1e-4  # relative difference of two probes below which a channel counts as constant


@dataclass(frozen=True)
class Folded:
    """How many reads of removed channels were made up for, and how many were not: the channel is
    not constant.
    """

    folded: int
    left: int


def fold_constants(
    model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks, smaller: nn.Module
) -> Folded:
    """Add to `smaller`, cut from `model` by `masks`, what the removed channels' constants gave to
    its layers, in place.

    A reader followed by a batch norm takes it into the running mean, another one into its bias.
    """
    index = ChannelIndex(model, groups)
    keep = index.flatten(masks)
    silent = _silent(model, index)
    readers = {
        name: gone
        for name, ins in index.ins.items()
        if len(gone := np.flatnonzero(~keep[ins] & silent[ins]))
    }
    said, norms = _constants(model, index, keep, readers)
    folded, left = 0, sum(int((~keep[ins] & ~silent[ins]).sum()) for ins in index.ins.values())
    with torch.no_grad():
        for name, gone in readers.items():
            outs = torch.from_numpy(np.flatnonzero(keep[index.outs[name]]))
            layer: Any = model.get_submodule(name)
            value = said.get(name)
            target = _target(smaller, name, norms.get(name))
            if value is None or target is None:
                left += len(gone)
                continue
            constant = value.isfinite()
            folded, left = folded + int(constant.sum()), left + int((~constant).sum())
            taps = (
                layer.weight[:, torch.from_numpy(gone)].flatten(2).sum(2)
                if layer.weight.dim() > 2
                else layer.weight[:, gone]
            )
            lost = taps @ torch.where(constant, value, torch.zeros_like(value)).to(taps)
            tensor, sign = target
            tensor += sign * lost[outs.to(lost.device)]
    return Folded(folded, left)


def _target(smaller: nn.Module, reader: str, norm: str | None) -> tuple[Tensor, int] | None:
    """The tensor of the cut model that takes a reader's constant, and its sign: a mean is
    subtracted.
    """
    if norm is not None:
        mean = smaller.get_submodule(norm).running_mean
        return (mean, -1) if isinstance(mean, Tensor) else None
    bias = smaller.get_submodule(reader).bias
    return (bias, 1) if isinstance(bias, Tensor) else None


def _silent(model: nn.Module, index: ChannelIndex) -> np.ndarray:
    """Of the flat channels those whose every batch norm has a scale near 0; the last entry is
    False.
    """
    silent = np.append(np.ones(index.total, dtype=bool), False)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and isinstance(module.weight, Tensor):
            silent[index.outs[name][(module.weight.detach().abs() >= SILENT).cpu().numpy()]] = False
    return silent


def _constants(
    model: nn.Module, index: ChannelIndex, keep: np.ndarray, readers: dict[str, np.ndarray]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Value of every removed channel at its readers, NaN where it is not constant; and the batch
    norm right after a reader.

    Found by running a copy whose removed channels have no scale, but their shift, on two random
    images: whatever lies between (activations, sums, concatenations, pools, implicits) is in it.
    The middle pixel has no border in reach.
    """
    probe = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, outs in index.outs.items():
            module = (
                probe.get_submodule(name) if name not in dict(probe.named_parameters()) else None
            )
            if isinstance(module, _BatchNorm) and module.weight is not None:
                module.weight[torch.from_numpy(~keep[outs]).to(module.weight.device)] = 0
    first, norms = _middles(probe, readers, seed=0)
    second, _ = _middles(probe, readers, seed=1)
    same = {
        name: (first[name] - second[name]).abs() <= SAME * (1 + first[name].abs()) for name in first
    }
    return {name: torch.where(same[name], first[name], torch.nan) for name in first}, norms


def _middles(
    probe: nn.Module, readers: dict[str, np.ndarray], seed: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Inputs of the readers' removed channels at the middle pixel for one random image, and the
    batch norm after each reader.
    """
    values: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    norms: dict[str, str] = {}

    def read(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            x = inputs[0]
            middle = (
                x[0, :, x.shape[2] // 2, x.shape[3] // 2] if x.dim() == 4 else x.flatten(0, -2)[0]
            )
            values[name] = middle[torch.from_numpy(readers[name]).to(middle.device)]
            outputs[name] = output

        return hook

    def follow(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            norms.update(
                {reader: name for reader, output in outputs.items() if output is inputs[0]}
            )

        return hook

    handles = [probe.get_submodule(name).register_forward_hook(read(name)) for name in readers]
    handles += [
        m.register_forward_pre_hook(follow(n))
        for n, m in probe.named_modules()
        if isinstance(m, _BatchNorm)
    ]
    parameter = next(probe.parameters())
    x = torch.rand(1, 3, PROBE_SIZE, PROBE_SIZE, generator=torch.Generator().manual_seed(seed)).to(
        parameter
    )
    with torch.no_grad():
        raw_outputs(probe(x))
    for handle in handles:
        handle.remove()
    return values, norms

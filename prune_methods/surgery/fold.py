"""Fold the constant part of removed channels into the layers that read them.

A channel whose batch norm scale is near 0 still has the value act(beta) everywhere (Ye et al.,
Rethinking the Smaller-Norm-Less-Informative Assumption, ICLR 2018, arXiv 1802.00124, section 4).
Cutting the channel takes that constant away from every reader.

Channels with a larger scale are left alone. There act(beta) is not even the mean of the channel,
since SiLU is curved and beta is often negative; folding it made dense models worse.

At zero-padded borders the fold is inexact: a reader sees fewer than all of its taps there, the
folded constant counts them all.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import raw_outputs
from prune_methods.surgery.follow import follow

PROBE_SIZE = 256  # pixels: maps of the coarsest level are large enough to have an inside
# |gamma| below it: the mean of SiLU(beta + gamma z) is within .25 gamma^2 of SiLU(beta)
SILENT = 0.1
SAME = 1e-4  # relative difference of two probes below which a channel counts as constant


@dataclass(frozen=True)
class Folded:
    """Numbers of reads of removed channels: folded, and left because the channel is
    not constant.
    """

    folded: int
    left: int


def fold_constants(index: ChannelIndex, masks: Masks, smaller: nn.Module) -> Folded:
    """Add the constants of removed channels to the layers of `smaller` that read them, in place.

    A reader followed by a batch norm takes the constant into the running mean, another one into
    its bias.

    Args:
        index: the channels of the uncut model.
        masks: what was kept.
        smaller: the model cut by the masks.
    """
    keep = index.flatten(masks)
    silent = _silent(index)
    readers: dict[str, np.ndarray] = {}
    left = 0
    for name, ins in index.ins.items():
        left += int((~keep[ins] & ~silent[ins]).sum())
        gone = np.flatnonzero(~keep[ins] & silent[ins])
        if len(gone):
            readers[name] = gone
    values, norms = _constants(index, keep, readers)
    folded = 0
    for name, gone in readers.items():
        target = _target(smaller, name, norms.get(name))
        if name not in values or target is None:
            left += len(gone)
            continue
        constant = values[name].isfinite()
        folded, left = folded + int(constant.sum()), left + int((~constant).sum())
        outs = np.flatnonzero(keep[index.outs[name]])
        _add(index.model.get_submodule(name), gone, values[name], outs, target)
    return Folded(folded, left)


@torch.no_grad()
def _add(
    layer: Any, gone: np.ndarray, value: Tensor, outs: np.ndarray, target: tuple[Tensor, int]
) -> None:
    """Add to the target what a layer's remaining outputs `outs` got from its inputs `gone`.

    `value` is the constant of each of these inputs, NaN where an input is not constant.
    """
    weight = layer.weight[:, torch.from_numpy(gone)]
    taps = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    finite = torch.where(value.isfinite(), value, torch.zeros_like(value))
    lost = taps @ finite.to(taps)
    tensor, sign = target
    tensor += sign * lost[torch.from_numpy(outs).to(lost.device)]


def _target(smaller: nn.Module, reader: str, norm: str | None) -> tuple[Tensor, int] | None:
    """Return the tensor of the cut model that takes a reader's constant, and its sign.

    A running mean is subtracted, so its sign is -1; None where nothing can take the constant.
    """
    if norm is not None:
        mean = smaller.get_submodule(norm).running_mean
        return (mean, -1) if isinstance(mean, Tensor) else None
    bias = smaller.get_submodule(reader).bias
    return (bias, 1) if isinstance(bias, Tensor) else None


def _silent(index: ChannelIndex) -> np.ndarray:
    """Return the flat mask of channels whose every batch norm has a scale near 0; last is False."""
    silent = np.append(np.ones(index.total, dtype=bool), False)
    for name, module in index.model.named_modules():
        if isinstance(module, _BatchNorm) and isinstance(module.weight, Tensor):
            loud = (module.weight.detach().abs() >= SILENT).cpu().numpy()
            silent[index.outs[name][loud]] = False
    return silent


def _constants(
    index: ChannelIndex, keep: np.ndarray, readers: dict[str, np.ndarray]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Measure the value of every removed channel at its readers.

    A copy whose removed channels have their shift but no scale runs on two random images, so that
    everything in between counts: activations, sums, concatenations, pools, implicits. The middle
    pixel has no border in reach.

    Returns:
        Reader -> values, NaN where a channel is not constant; reader -> batch norm right after.
    """
    probe = copy.deepcopy(index.model).eval()
    with torch.no_grad():
        for name, module in probe.named_modules():
            if isinstance(module, _BatchNorm) and module.weight is not None:
                gone = torch.from_numpy(~keep[index.outs[name]])
                module.weight[gone.to(module.weight.device)] = 0
    first, second = (_middles(probe, readers, _random_image(probe, seed)) for seed in (0, 1))
    values: dict[str, Tensor] = {}
    for name, value in first.items():
        same = (value - second[name]).abs() <= SAME * (1 + value.abs())
        values[name] = torch.where(same, value, torch.nan)
    norms = follow(probe, _random_image(probe, seed=0), list(readers)).norm_after
    return values, norms


def _random_image(model: nn.Module, seed: int) -> Tensor:
    """Return an image of noise, (1, 3, H, W) in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 3, PROBE_SIZE, PROBE_SIZE, generator=generator)
    return x.to(next(model.parameters()))


@torch.no_grad()
def _middles(probe: nn.Module, readers: dict[str, np.ndarray], x: Tensor) -> dict[str, Tensor]:
    """Run an image; return what readers see of removed channels at the middle pixel."""
    values: dict[str, Tensor] = {}

    def read(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            middle = _middle_pixel(inputs[0], module)
            values[name] = middle[torch.from_numpy(readers[name]).to(middle.device)]

        return hook

    layers = {name: probe.get_submodule(name) for name in readers}
    handles = [layer.register_forward_pre_hook(read(name)) for name, layer in layers.items()]
    raw_outputs(probe(x))
    for handle in handles:
        handle.remove()
    return values


def _middle_pixel(x: Tensor, reader: nn.Module) -> Tensor:
    """Return the channels (C,) that a layer reads at the middle pixel of the first image.

    A linear layer reads the last dimension: (N, H, W, C) as in ConvNeXt, (N, L, C) or (N, C). A
    convolution reads dimension 1 of (N, C, H, W).
    """
    first = x[0] if isinstance(reader, nn.Linear) else x[0].movedim(0, -1)
    for length in first.shape[:-1]:
        first = first[length // 2]
    return first

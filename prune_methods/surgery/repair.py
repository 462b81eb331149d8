"""Repair: a few hundred steps of all weights towards the uncut model, without labels.

Channel i of a cut layer is channel keep[i] of the uncut one, so feature maps compare as they are,
without an adapter. Batch norms keep their statistics: the function that is trained is the one that
is deployed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from prune_methods.groups.channel_index import ChannelIndex, Masks
from utils.engine.modes import evaluating

WARM_UP = 0.1  # of the steps
SMALLEST = 1e-3  # a tensor of zeros may move by this much times the rate

OutputLoss = Callable[[Any, Any], Tensor]
"""(outputs of the cut model, outputs of the uncut model), both in eval mode -> a scalar."""


@dataclass(frozen=True)
class RepairSettings:
    """Settings of a repair.

    Attributes:
        steps: steps of Adam; 0 = none.
        lr: largest step of a weight, relative to the root mean square of its tensor. The rate rises
            over the first tenth of the steps and falls along a half cosine.
        features: weight of the feature maps beside the outputs.
        layers: feature maps that are compared in a step, drawn anew each time.
        clip: largest norm of a gradient.
        seed: of the draw of layers.
    """

    steps: int = 300
    lr: float = 1e-2
    features: float = 1.0
    layers: int = 8
    clip: float = 10.0
    seed: int = 0


class KeptMaps:
    """Pairs of feature maps behind batch norms: the cut model's, and the same channels of the
    uncut one's."""

    def __init__(self, index: ChannelIndex, masks: Masks, smaller: nn.Module):
        keep = index.flatten(masks)
        self.model, self.smaller = index.model, smaller
        self.kept = {
            name: torch.from_numpy(np.flatnonzero(keep[index.outs[name]]))
            for name, module in smaller.named_modules()
            if isinstance(module, _BatchNorm) and name in index.outs
        }

    @contextmanager
    def reading(self, names: Sequence[str]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Collect pairs of maps of one pass of the uncut model and then one of the cut model.

        Args:
            names: of batch norms.

        Yields:
            A list that fills with (cut, uncut) maps (N, C, H, W) of one shape.
        """
        theirs: dict[str, Tensor] = {}
        pairs: list[tuple[Tensor, Tensor]] = []

        def record(name: str):
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                theirs[name] = output.index_select(1, self.kept[name].to(output.device))

            return hook

        def pair(name: str):
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                pairs.append((output, theirs.pop(name)))
                return output.clone()  # the activation behind may work in place

            return hook

        with ExitStack() as stack:
            for model, make in ((self.model, record), (self.smaller, pair)):
                for name in names:
                    module = model.get_submodule(name)
                    stack.callback(module.register_forward_hook(make(name)).remove)
            yield pairs


def map_distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean over pairs of maps of the squared difference over the variance."""
    terms = [(ours - goal).square().mean() / _variance(goal) for ours, goal in pairs]
    return torch.stack(terms).mean()


def _variance(maps: Tensor) -> Tensor:
    """Return the mean variance of the channels of (N, C, ...)."""
    return maps.transpose(0, 1).flatten(1).var(1, correction=0).mean().clamp(min=1e-6)


def repair(
    maps: KeptMaps,
    images: Iterable[Tensor],
    output_loss: OutputLoss,
    settings: RepairSettings | None = None,
) -> None:
    """Train the cut model towards the uncut model, in place.

    Args:
        maps: both models and the channels that they share.
        images: batches in 0..1 (N, 3, H, W), walked through again and again.
        output_loss: distance of the outputs in eval mode.
        settings: of the training.
    """
    how = settings or RepairSettings()
    model, smaller = maps.model, maps.smaller
    weights = [p for p in smaller.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([{"params": [w], "lr": how.lr * _size(w)} for w in weights])
    schedule = LambdaLR(optimizer, partial(_rate, how.steps))
    batches = islice(chain.from_iterable(repeat(images)), how.steps)
    draw = np.random.default_rng(how.seed)
    bar = tqdm(batches, "Repair", how.steps, unit="step")
    with evaluating(model), evaluating(smaller):
        for x in bar:
            names = _drawn(list(maps.kept), how, draw)
            with maps.reading(names) as pairs:
                with torch.no_grad():
                    goal = model(x)
                loss = output_loss(smaller(x), goal)
            bar.set_postfix_str(f"outputs {float(loss.detach()):.4f}")
            if pairs:
                loss = loss + how.features * map_distance(pairs)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, how.clip)
            optimizer.step()
            schedule.step()


def _drawn(names: list[str], how: RepairSettings, draw: np.random.Generator) -> list[str]:
    """Return the layers whose maps are compared in a step."""
    number = min(how.layers, len(names)) if how.features else 0
    return [names[i] for i in draw.permutation(len(names))[:number]]


@torch.no_grad()
def _size(weight: Tensor) -> float:
    """Return the root mean square of a tensor, or a small number for a tensor of zeros."""
    return max(float(weight.square().mean().sqrt()), SMALLEST)


def _rate(steps: int, step: int) -> float:
    """Return the learning rate of a step as a share of the largest, 0..1."""
    warm = max(WARM_UP * steps, 1)
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / max(steps, 1)))

"""Time of the deployed model that a mask would leave, predicted layer by layer from narrowed copies
that were measured.

A layer's time runs from its call to the call of the next one, so that whatever works on its output
in between (activation, concatenation, pooling) is counted with it and the sum over the layers is
the whole model. It is modelled as

    t = a + b outs + c ins + d outs ins,    a, b, c, d >= 0:

what a call costs however small it is, what is written, what is read, what is multiplied. MACs know
the last term only.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.search.cost import Cost
from prune_methods.search.plan import keep_first
from utils.errors import UserError
from utils.profiling import macs_by_module

# share of its channels that a group of a measured copy keeps at least: what a 4x cut looks like
NARROWEST = 0.25


class TimeModel:
    """Seconds of one batch as a function of the flat mask; a `cost_fn` for `Target`.

    `terms`: float (4, layers), seconds of a, b, c and d at full width, the layers in the order of
    `cost.layers`.
    """

    def __init__(self, cost: Cost, everything: np.ndarray, terms: np.ndarray):
        """`everything`: the flat mask of the uncut model."""
        self.cost, self.terms = cost, terms
        self.full = cost.outs(everything), cost.ins(everything)

    def __call__(self, keep: np.ndarray) -> float:
        """Seconds of the deployed model with this mask."""
        return float((self.terms * self.features(keep)).sum())

    def features(self, keep: np.ndarray) -> np.ndarray:
        """float (4, layers): what the four terms are multiplied with, 1 at full width."""
        outs, ins = self.cost.outs(keep) / self.full[0], self.cost.ins(keep) / self.full[1]
        return np.stack([np.ones(len(outs)), outs, ins, outs * ins])


def narrowed(
    index: ChannelIndex, floors: np.ndarray, round_to: int, generator: np.random.Generator
) -> np.ndarray:
    """Return a flat mask that keeps the first channels of each group, a random share of them.

    The share is drawn between a quarter and all; widths are multiples of `round_to` and not below
    `floors`.
    """
    widths = np.ceil(index.sizes * generator.uniform(NARROWEST, 1, len(index.sizes))).astype(int)
    widths = np.minimum(np.maximum(-(-widths // round_to) * round_to, floors), index.sizes)
    return keep_first(index, widths)


def fit_time_model(
    cost: Cost, everything: np.ndarray, keeps: Sequence[np.ndarray], seconds: np.ndarray
) -> TimeModel:
    """The model whose relative errors are smallest for `seconds` (copies, layers), measured on
    copies with the masks `keeps`.
    """
    model = TimeModel(cost, everything, np.zeros((4, seconds.shape[1])))
    features = np.stack([model.features(keep) for keep in keeps])  # (copies, 4, layers)
    model.terms = np.stack(
        [_least_squares(features[:, :, n] / t[:, None]) for n, t in enumerate(seconds.T)], axis=1
    )
    return model


def _least_squares(relative: np.ndarray) -> np.ndarray:
    """x >= 0 (4,) that brings `relative` @ x closest to 1: of all subsets of its columns the best
    with such a solution.
    """
    best, terms = np.inf, np.zeros(relative.shape[1])
    for subset in itertools.product([False, True], repeat=relative.shape[1]):
        chosen = np.flatnonzero(subset)
        found = np.linalg.lstsq(relative[:, chosen], np.ones(len(relative)), rcond=None)[0]
        error = float(np.square(relative[:, chosen] @ found - 1).sum())
        if error < best - 1e-12 and (found >= 0).all():
            best, terms = error, np.zeros_like(terms)
            terms[chosen] = found
    return terms


class LayerClock:
    """Runs a deployed model and tells how long each of its layers took, from its call to that of
    the next one.

    The first layer's time starts with the model's, the last one's ends with it. On a GPU the times
    are the device's own (events), so that nothing waits in between.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        device: torch.device,
        clock: Callable[[], float],
    ):
        self.model, self.layers, self.device, self.clock = model, list(layers), device, clock
        self.marks: list[tuple[int, Any]] = []
        for number, name in enumerate(self.layers):
            model.get_submodule(name).register_forward_pre_hook(
                lambda *_, number=number: self._mark(number)
            )

    def run(self, images: torch.Tensor) -> np.ndarray:
        """Seconds by layer of one forward pass; a layer that is called twice has both."""
        self.marks = []
        start = self._now()
        self.model(images)
        end = self._now()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        numbers, marks = zip(*self.marks, strict=True)
        borders = [start, *marks[1:], end]
        seconds = np.zeros(len(self.layers))
        for number, (before, after) in zip(numbers, itertools.pairwise(borders), strict=True):
            seconds[number] += (
                after - before if self.device.type == "cpu" else before.elapsed_time(after) / 1000
            )
        return seconds

    def _mark(self, number: int) -> None:
        self.marks.append((number, self._now()))

    def _now(self) -> Any:
        if self.device.type == "cpu":
            return self.clock()
        event = torch.Event(device=self.device, enable_timing=True)
        event.record()
        return event


def deployed_layers(cost: Cost, deployed: nn.Module, imgsz: int = 64) -> list[str]:
    """Names in the deployed model of the layers of `cost`: they run in the same order, a RepConv's
    under another name.

    `UserError` where a block deploys to other convolutions than those it trains, which cannot be
    told apart.
    """
    modules = dict(deployed.named_modules())
    names = [
        n for n in macs_by_module(deployed, imgsz) if isinstance(modules[n], nn.Conv2d | nn.Linear)
    ]
    if len(names) != len(cost.layers):
        raise UserError(
            f"--target latency: {len(cost.layers)} layers become {len(names)} in the deployed"
            " model, whose times cannot be told apart; --target macs would be right"
        )
    return names

"""Predict the time of a deployed model from its mask, layer by layer.

The prediction is fitted to measured copies of the model with narrower layers. The time of a layer
runs from its call to the call of the next layer. Operations on its output in between (activation,
concatenation, pooling) count with the layer, so that the sum over all layers is the time of the
whole model. The time of a layer is modelled as

    t = a + b outs + c ins + d outs ins,    a, b, c, d >= 0

where a is the fixed cost of a call, b outs the cost of writing, c ins the cost of reading and
d outs ins the cost of multiplying. MACs cover the last term only.
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

NARROWEST = 0.25  # smallest share of a group in a measured copy: the widths of about a 4x cut


class TimeModel:
    """Seconds of one batch as a function of the flat mask; a `cost_fn` for `Target`."""

    def __init__(self, cost: Cost, everything: np.ndarray, terms: np.ndarray):
        """Keep the terms and the widths of the uncut model.

        Args:
            cost: the layers of the model.
            everything: flat mask of the uncut model.
            terms: float (4, layers), seconds of a, b, c and d at full width; layers in the order of
                `cost.layers`.
        """
        self.cost, self.terms = cost, terms
        self.full = cost.outs(everything), cost.ins(everything)

    def __call__(self, keep: np.ndarray) -> float:
        """Return the seconds of the deployed model with this mask."""
        return float((self.terms * self.features(keep)).sum())

    def features(self, keep: np.ndarray) -> np.ndarray:
        """Return the factors of the four terms, float (4, layers), 1 at full width."""
        outs, ins = self.cost.outs(keep) / self.full[0], self.cost.ins(keep) / self.full[1]
        return np.stack([np.ones(len(outs)), outs, ins, outs * ins])


def narrowed(
    index: ChannelIndex, floors: np.ndarray, round_to: int, generator: np.random.Generator
) -> np.ndarray:
    """Return a flat mask that keeps the first channels of each group, a random share of them.

    Args:
        index: the channels of the model.
        floors: int (groups,), smallest widths.
        round_to: widths are multiples of it.
        generator: draws the share of each group between `NARROWEST` and 1.
    """
    widths = np.ceil(index.sizes * generator.uniform(NARROWEST, 1, len(index.sizes))).astype(int)
    widths = np.minimum(np.maximum(-(-widths // round_to) * round_to, floors), index.sizes)
    return keep_first(index, widths)


def fit_time_model(
    cost: Cost, everything: np.ndarray, keeps: Sequence[np.ndarray], seconds: np.ndarray
) -> TimeModel:
    """Fit the time of each layer so that the squares of the relative errors are smallest.

    Args:
        cost: the layers of the model.
        everything: flat mask of the uncut model.
        keeps: flat masks of the measured copies.
        seconds: float (copies, layers), measured.
    """
    model = TimeModel(cost, everything, np.zeros((4, seconds.shape[1])))
    features = np.stack([model.features(keep) for keep in keeps])  # (copies, 4, layers)
    terms = [_least_squares(features[:, :, n] / t[:, None]) for n, t in enumerate(seconds.T)]
    model.terms = np.stack(terms, axis=1)
    return model


def _least_squares(relative: np.ndarray) -> np.ndarray:
    """Return the x >= 0, float (4,), that brings `relative` @ x closest to 1.

    All subsets of the columns are solved without bounds; the best solution without a negative
    value is the bounded one.
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
    """Run a deployed model and time each of its layers, from its call to the call of the next.

    The time of the first layer starts with the model's, and the time of the last layer ends with
    it. On a GPU the device itself takes the times (events), so that no layer waits for the host.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        device: torch.device,
        clock: Callable[[], float],
    ):
        """Hook the layers.

        Args:
            model: the deployed model.
            layers: names of the layers to time.
            device: where the model runs.
            clock: seconds; used on the CPU only.
        """
        self.model, self.layers, self.device, self.clock = model, list(layers), device, clock
        self.marks: list[tuple[int, Any]] = []
        for number, name in enumerate(self.layers):
            model.get_submodule(name).register_forward_pre_hook(
                lambda *_, number=number: self._mark(number)
            )

    def run(self, images: torch.Tensor) -> np.ndarray:
        """Return the seconds of each layer in one forward pass, float (layers,).

        The times of a layer that is called more than once are added up.
        """
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
            seconds[number] += self._between(before, after)
        return seconds

    def _between(self, before: Any, after: Any) -> float:
        """Return the seconds between two results of `_now`."""
        if self.device.type == "cpu":
            return after - before
        return before.elapsed_time(after) / 1000  # an event counts milliseconds

    def _mark(self, number: int) -> None:
        """Record the call of a layer by its number."""
        self.marks.append((number, self._now()))

    def _now(self) -> Any:
        """Return the time in seconds on the CPU, else a recorded event of the device."""
        if self.device.type == "cpu":
            return self.clock()
        event = torch.Event(device=self.device, enable_timing=True)
        event.record()
        return event


def deployed_layers(cost: Cost, deployed: nn.Module, imgsz: int = 64) -> list[str]:
    """Return the names that the layers of `cost` have in the deployed model.

    Layers run in the same order before and after deployment; those of a RepConv change their name.

    Args:
        cost: the layers of the training form.
        deployed: the deployed model.
        imgsz: pixels of the image that finds the order.

    Raises:
        UserError: where the number of layers differs, because a block deploys to other convolutions
            than it trains.
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

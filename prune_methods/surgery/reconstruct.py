"""Closed-form reconstruction: new weights for what is left, so that each layer's output is that of
the uncut model.

One pass of the uncut model records inputs and outputs of every layer at sampled pixels. One pass of
the cut model over all calibration images solves a weighted ridge regression in front of each layer,
writes the weights and lets the layer run on, so residuals and concatenations need no rule. The rows
are inputs of both models, half and half: those of the cut model alone shrink the weights towards
the mean, those of the uncut model alone let errors add up.

Each batch norm then takes the statistics of what really arrives, with scale and shift changed so
that its function in eval mode stays the same.

Related: Luo et al., ThiNet, ICCV 2017; He et al., Channel Pruning, ICCV 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.surgery.calibration import Calibration, pixel_weights
from prune_methods.surgery.follow import Followed, follow
from prune_methods.surgery.pixels import (
    Layer,
    PixelSample,
    input_rows,
    output_pixels,
    output_rows,
    supported,
)
from prune_methods.surgery.recalibrate import renew
from utils.engine.modes import evaluating
from utils.least_squares import Moments, Regression, ridge_regression

EXACT = 1e-6  # share of the variance left by weights that need no change
FEW_IMAGES = 64  # below this many the fit is worth little


@dataclass(frozen=True)
class FitSettings:
    """Settings of the regressions.

    Attributes:
        ridge: strength of the pull towards the cut weights, relative to each column's power.
        share: weight of the uncut model's inputs among the rows, 0..1.
        rows: least number of rows of a layer.
        rows_per_column: rows of a layer for each of its columns.
        seed: of the draw of pixels.
    """

    ridge: float = 1e-2
    share: float = 0.5
    rows: int = 8192
    rows_per_column: int = 16
    seed: int = 0


@dataclass(frozen=True)
class LayerFit:
    """The fit of one layer: squared residual over variance, with the cut weights and the new."""

    layer: str
    before: float
    after: float


@dataclass(frozen=True)
class Reconstruction:
    """What was done.

    Attributes:
        fits: of each layer, in the order of the forward pass.
        left: layer -> why its weights stayed.
    """

    fits: tuple[LayerFit, ...]
    left: dict[str, str]


def reconstruct(
    index: ChannelIndex,
    masks: Masks,
    smaller: nn.Module,
    calibration: Calibration,
    settings: FitSettings | None = None,
    progress: bool = False,
) -> Reconstruction:
    """Fit the weights of `smaller` to the outputs of the uncut model, in place.

    Args:
        index: the channels of the uncut model, which does not change.
        masks: channels that were kept; with all kept, nothing is done.
        smaller: the model cut by the masks.
        calibration: training images and their loss.
        settings: of the regressions.
        progress: show a bar.
    """
    keep = index.flatten(masks)
    if keep.all():
        return Reconstruction((), {})
    device = next(smaller.parameters()).device
    layers = _fittable(index, smaller)
    followed = follow(smaller, calibration.part(slice(0, 1), device), layers)
    left = _left_alone(smaller, layers, followed)
    layers = [name for name in layers if name not in left]
    sides = _Sides(index, keep, layers)
    how = settings or FitSettings()
    sample = PixelSample(len(calibration), how.rows, how.rows_per_column, how.seed)
    weights = pixel_weights(index.model, layers, calibration)
    recorder = _Recorder(sides, smaller, sample, weights)
    with evaluating(index.model), evaluating(smaller), torch.no_grad():
        recorder.run(index.model, calibration, device)
        bar = tqdm(total=len(layers), desc="Reconstruction", unit="layer", disable=not progress)
        fitter = _Fitter(smaller, followed, recorder, how, bar)
        fitter.run(calibration.part(slice(None), device))
        bar.close()
    return Reconstruction(tuple(fitter.fits), left)


def _fittable(index: ChannelIndex, smaller: nn.Module) -> list[str]:
    """Return the names of the index that are convolutions or linear layers."""
    modules = dict(smaller.named_modules())
    return [name for name in index.outs if isinstance(modules.get(name), nn.Conv2d | nn.Linear)]


def _left_alone(smaller: nn.Module, layers: Sequence[str], followed: Followed) -> dict[str, str]:
    """Return the layers that cannot be fitted, and why."""
    left: dict[str, str] = {}
    for name in layers:
        calls = followed.calls.get(name, 0)
        reason = supported(smaller.get_submodule(name))
        if calls != 1:
            reason = f"it runs {calls} times" if calls else "it does not run"
        if reason:
            left[name] = reason
    return left


class _Sides:
    """Channels of the uncut model that remain at the inputs and outputs of each layer."""

    def __init__(self, index: ChannelIndex, keep: np.ndarray, layers: Sequence[str]):
        self.layers = list(layers)
        self.outs = {name: _numbers(keep[index.outs[name]]) for name in layers}
        self.ins = {name: _numbers(keep[self._read_by(index, name)]) for name in layers}

    @staticmethod
    def _read_by(index: ChannelIndex, name: str) -> np.ndarray:
        """Return the flat numbers of a layer's inputs; a depthwise layer reads what it gives."""
        if name in index.ins:
            return index.ins[name]
        layer = index.model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        same = layer.groups == layer.in_channels == layer.out_channels
        return index.outs[name] if same else np.full(layer.in_channels, index.total)


def _numbers(kept: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(kept))


def _take(values: Tensor, chosen: Tensor, layer: nn.Module) -> Tensor:
    """Select channels of (N, C, H, W), or of (N, ..., C) at a linear layer."""
    dim = -1 if isinstance(layer, nn.Linear) else 1
    return values.index_select(dim, chosen.to(values.device))


class _Recorder:
    """Records the uncut model: outputs at the sampled pixels, and moments of inputs and outputs."""

    def __init__(
        self, sides: _Sides, smaller: nn.Module, sample: PixelSample, weights: dict[str, Tensor]
    ):
        self.sides, self.smaller, self.sample, self.weights = sides, smaller, sample, weights
        self.moments: dict[str, Moments] = {}
        self.goals: dict[str, list[Tensor]] = {name: [] for name in sides.layers}

    def run(self, model: nn.Module, calibration: Calibration, device: torch.device) -> None:
        """Record all images, a batch at a time."""
        for which in calibration.slices():
            hooks = [
                model.get_submodule(name).register_forward_hook(self._hook(name, which))
                for name in self.sides.layers
            ]
            model(calibration.part(which, device))
            for hook in hooks:
                hook.remove()

    def at(self, name: str, layer: Layer, x: Tensor, which: slice) -> tuple[Tensor, Tensor | None]:
        """Return the pixels (N, P) to use of some images, and the weight of each row."""
        height, width = output_pixels(layer, x)
        at = self.sample.of(name, height * width, layer.weight[0].numel())[which]
        weights = self.weights.get(name)
        return at, None if weights is None else weights[which].gather(1, at).flatten()

    def _hook(self, name: str, which: slice):
        cut: Any = self.smaller.get_submodule(name)

        def record(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = _take(inputs[0], self.sides.ins[name], module)
            y = _take(output, self.sides.outs[name], module)
            at, weight = self.at(name, cut, x, which)
            goal = output_rows(cut, y, at)
            found = Moments.of(input_rows(cut, x, at), goal, weight)
            if name in self.moments:
                self.moments[name] += found
            else:
                self.moments[name] = found
            self.goals[name].append(goal)

        return record


class _Fitter:
    """Fits layer by layer while the cut model runs once over all images."""

    def __init__(
        self,
        smaller: nn.Module,
        followed: Followed,
        recorder: _Recorder,
        settings: FitSettings,
        bar: Any,
    ):
        self.smaller, self.followed, self.recorder = smaller, followed, recorder
        self.settings, self.bar = settings, bar
        self.fits: list[LayerFit] = []

    def run(self, images: Tensor) -> None:
        """Fit everything; images (N, 3, H, W) in 0..1."""
        hooks = [
            self.smaller.get_submodule(name).register_forward_pre_hook(self._fit(name))
            for name in self.recorder.sides.layers
        ]
        for name, module in self.smaller.named_modules():
            if isinstance(module, _BatchNorm) and self.followed.calls.get(name) == 1:
                hooks.append(module.register_forward_pre_hook(renew))
        self.smaller(images)
        for hook in hooks:
            hook.remove()

    def _fit(self, name: str):
        def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            moments, has_intercept = self._moments(name, layer, inputs[0]), self._centred(name)
            prior = _as_columns(layer.weight, layer)
            found = ridge_regression(moments, prior, self.settings.ridge, has_intercept)
            if found.before > EXACT:
                layer.weight.copy_(found.weight.mT.reshape(layer.weight.shape))
            else:
                found = _kept(found, moments, prior, has_intercept)
            self._shift(name, layer, found.intercept.flatten())
            self.fits.append(LayerFit(name, found.before, found.after))
            self.bar.update()

        return hook

    def _moments(self, name: str, layer: Layer, x: Tensor) -> Moments:
        """Return the moments of both models' inputs, each with its share."""
        goal = torch.cat(self.recorder.goals.pop(name), 1)
        at, weight = self.recorder.at(name, layer, x, slice(None))
        ours = Moments.of(input_rows(layer, x, at), goal, weight)
        theirs = self.recorder.moments.pop(name)
        theirs.scale(self.settings.share)
        ours.scale(1 - self.settings.share)
        ours += theirs
        return ours

    def _centred(self, name: str) -> bool:
        """Tell whether something can take an intercept."""
        biased = self.smaller.get_submodule(name).bias is not None
        return biased or name in self.followed.norm_after

    def _shift(self, name: str, layer: Layer, intercept: Tensor) -> None:
        """Put the intercept into the bias, or into the running mean right behind."""
        if layer.bias is not None:
            layer.bias.copy_(intercept)
        elif name in self.followed.norm_after:
            norm = self.smaller.get_submodule(self.followed.norm_after[name])
            assert isinstance(norm.running_mean, Tensor)
            norm.running_mean.sub_(intercept.to(norm.running_mean))


def _kept(found: Regression, moments: Moments, prior: Tensor, intercept: bool) -> Regression:
    """Return the solution with the prior weights."""
    lost = moments.y - (moments.x[:, None] @ prior)[:, 0]
    return Regression(prior, lost if intercept else found.intercept, found.before, found.before)


def _as_columns(weight: Tensor, layer: Layer) -> Tensor:
    """Return a layer's weight as (groups, columns, outputs of a group), float64."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.double().flatten(1).unflatten(0, (groups, -1)).mT

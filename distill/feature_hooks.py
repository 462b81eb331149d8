"""Read the outputs of chosen layers during a forward pass that other code runs.

The hooks exist only while `FeatureHooks.reading()` is open. Copies of the model (EMA, best.pt)
therefore never carry a hook, validation collects nothing, and no feature map outlives the step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models import Model
from utils.engine.modes import evaluating
from utils.errors import UserError, suggest


def head_inputs(model: Model) -> list[str]:
    """Return the numbers of the rows that feed the detection head, the finest level first."""
    return [str(index) for index in model.specs[-1].source[: model.head.nl]]


def find_layer(model: Model, name: str, option: str) -> str:
    """Return the path of a module inside the model.

    Args:
        model: The model that is searched.
        name: Number of a row (`17`), tag of a row, or path of any module (`model.17.cv3`).
        option: Command-line option that the error names.

    Raises:
        UserError: Where the model has no such layer.
    """
    if name.isdecimal():
        if int(name) >= len(model.model):
            raise UserError(f"{option} {name}: the model has the rows 0 to {len(model.model) - 1}")
        return f"model.{int(name)}"
    tags = {spec.tag: f"model.{spec.index}" for spec in model.specs if spec.tag}
    if name in tags:
        return tags[name]
    paths = dict(model.named_modules())
    if name not in paths:
        raise UserError(
            f"{option} {name}: no such layer{suggest(name, [*tags, *paths])}; give a row's number"
            " or tag, or a module's path"
        )
    return name


class FeatureHooks:
    """Read the feature maps of chosen layers of one model."""

    def __init__(self, model: Model, names: Sequence[str], option: str):
        """Find the layers; `names` are as `find_layer` takes them, `option` is named in errors."""
        self.model, self.names, self.option = model, list(names), option
        self.paths = [find_layer(model, name, option) for name in names]

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Collect the feature maps of one forward pass that runs while the context is open.

        Yields:
            A list, filled when the context closes with the maps (N, C, H, W) in the order of the
                names.

        Raises:
            UserError: Where a layer gives no such map, or where a later layer overwrites the map in
                place, so that the map is no longer what the layer gave.
        """
        found: dict[int, tuple[Tensor, int]] = {}
        maps: list[Tensor] = []
        # modules are looked up each time: training may replace one (SyncBatchNorm)
        modules = [self.model.get_submodule(path) for path in self.paths]
        hooks = [
            module.register_forward_hook(partial(_keep, found, i))
            for i, module in enumerate(modules)
        ]
        try:
            yield maps
        finally:
            for hook in hooks:
                hook.remove()
        for i, name in enumerate(self.names):
            if i not in found:
                raise UserError(
                    f"{self.option} {name}: gives no feature map (N, C, H, W); choose a layer"
                    " within the network"
                )
            feature, version = found[i]
            if feature._version != version:
                raise UserError(
                    f"{self.option} {name}: what follows overwrites its output in place; choose the"
                    " layer after it"
                )
            maps.append(feature)

    @torch.no_grad()
    def shapes(self, size: int) -> list[tuple[int, int, int]]:
        """Return (C, H, W) of each layer's map for images of `size` x `size` pixels.

        The model runs once in eval mode, so that no statistic changes; its mode is restored.
        """
        like = next(self.model.parameters())
        with evaluating(self.model), self.reading() as maps:
            self.model(like.new_zeros(1, self.model.cfg.get("ch", 3), size, size))
        return [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]


def _keep(
    found: dict[int, tuple[Tensor, int]], index: int, module: nn.Module, inputs: Any, output: Any
) -> None:
    """Store a layer's output and its version in `found[index]`; a forward hook.

    A row with several outputs gives its first one here; its further outputs are rows of their own.
    """
    first = output[0] if isinstance(output, list | tuple) else output
    if isinstance(first, Tensor) and first.ndim == 4:
        found[index] = (first, first._version)

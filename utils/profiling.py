"""Count multiply-accumulates and parameters of a model, and measure its time.

MACs come from torch's `FlopCounterMode`, with formulas of ours for the operators that it does not
know. They are exact for every kernel that multiplies matrices: convolutions, linear layers, matrix
products, attention, deformable convolutions. Element-wise work (activations, norms, pooling) is not
counted. GFLOPs are 2 x MACs / 1e9.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torchvision  # noqa: F401  (it registers the deformable convolution)
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from utils.engine.modes import evaluating

Shape = Sequence[int]


def _deformable(x: Shape, weight: Shape, *args: Any, out_shape: Shape, **options: Any) -> int:
    """Return the FLOPs of a deformable convolution, which are those of the plain one.

    Interpolation of the inputs is element-wise work; the convolution that makes the offsets counts
    by itself.
    """
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _product(first: Shape, *args: Any, out_shape: Shape, **options: Any) -> int:
    """Return the FLOPs of dot products over the last dimension of the first factor."""
    return 2 * math.prod(out_shape) * first[-1]


def _sum_of_products(
    bias: Shape, first: Shape, *args: Any, out_shape: Shape, **options: Any
) -> int:
    """Return the FLOPs of products that are summed over a batch: (B, N, K) and (B, K, M)."""
    return 2 * math.prod(out_shape) * first[0] * first[-1]


FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.torchvision.deform_conv2d: _deformable,
    torch.ops.aten.mv: _product,
    torch.ops.aten.dot: _product,
    torch.ops.aten.addbmm: _sum_of_products,
}
"""Formulas for operators that torch's counter does not know: shapes -> FLOPs."""


class _Counter(FlopCounterMode):
    """Count FLOPs as torch does, but a module with `macs(input, output) -> int` by that method."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=FORMULAS)
        self._correction = 0  # declared MACs minus those of the operators inside
        self._entered: list[int] = []  # MACs before each declared module that runs now

    @property
    def macs(self) -> int:
        """Multiply-accumulates so far; they stand still while a declared module runs."""
        return self._entered[0] if self._entered else self._total()

    def _total(self) -> int:
        """Return the MACs so far, those inside a running declared module included."""
        return self.get_total_flops() // 2 + self._correction

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._entered.append(self._total())

    def _leave(self, module: Any, inputs: Any, output: Any) -> None:
        before = self._entered.pop()
        if not self._entered:
            inside = self._total() - before
            self._correction += module.macs(inputs[0], output) - inside

    @contextmanager
    def declared_formulas(self, model: nn.Module) -> Iterator[None]:
        """Let modules with a method `macs` count instead of the operators inside them."""
        handles = []
        for module in model.modules():
            if hasattr(module, "macs"):
                handles.append(module.register_forward_pre_hook(self._enter))
                handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def run_on_meta(model: nn.Module, imgsz: int, channels: int = 3) -> None:
    """Run a forward pass in eval mode on shapes only, at any size in milliseconds.

    Parameters, buffers and modes stay untouched.
    """
    state = {
        name: tensor.to("meta")
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with torch.no_grad(), evaluating(model):
        image = torch.empty(1, channels, imgsz, imgsz, dtype=dtype, device="meta")
        functional_call(model, state, (image,))


def count_macs(model: nn.Module, imgsz: int = 640, channels: int = 3) -> int:
    """Return the multiply-accumulates of one image of imgsz x imgsz pixels."""
    return count_operations(model, imgsz, channels)[0]


def count_operations(model: nn.Module, imgsz: int = 640, channels: int = 3) -> tuple[int, int]:
    """Return multiply-accumulates and elements that pass through batch norms.

    Both are of one image of imgsz x imgsz pixels.
    """
    counter = _Counter()
    norm_elements = 0

    def count_norm(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal norm_elements
        norm_elements += output.numel()

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    handles = [norm.register_forward_hook(count_norm) for norm in norms]
    try:
        with counter.declared_formulas(model), counter:
            run_on_meta(model, imgsz, channels)
    finally:
        for handle in handles:
            handle.remove()
    return counter.macs, norm_elements


def macs_by_module(
    model: nn.Module, imgsz: int = 640, channels: int = 3
) -> dict[str, tuple[int, int, int]]:
    """Return (MACs, output height, output width) of each convolution and linear layer that runs.

    MACs are those of one image of imgsz x imgsz pixels, summed where a layer runs twice. Height and
    width of an output without them, as of a linear layer, are 1.
    """
    found: dict[str, tuple[int, int, int]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            height, width = output.shape[2:4] if output.dim() == 4 else (1, 1)
            transposed = isinstance(module, nn.ConvTranspose2d)
            macs = (inputs[0] if transposed else output).numel() * module.weight[0].numel()
            found[name] = (found.get(name, (0, 0, 0))[0] + macs, height, width)

        return hook

    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    layers = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        run_on_meta(model, imgsz, channels)
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class Passed:
    """Multiply-accumulates of a part of a model, and the shapes (C, H, W) of its outputs."""

    macs: int
    shapes: tuple[tuple[int, ...], ...]


def macs_by_part(
    model: nn.Module, parts: Sequence[str], imgsz: int = 640, channels: int = 3
) -> dict[str, Passed]:
    """Return MACs and output shapes of each named submodule for one image of imgsz x imgsz pixels.

    A submodule that does not run has no MACs and no shapes.
    """
    counter = _Counter()
    started: dict[str, int] = {}
    found = dict.fromkeys(parts, Passed(0, ()))

    def watch(name: str, module: nn.Module) -> list[Any]:
        def enter(module: nn.Module, inputs: Any) -> None:
            started[name] = counter.macs

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs = output if isinstance(output, list | tuple) else [output]
            shapes = tuple(tuple(t.shape[1:]) for t in outputs if _is_map(t))
            found[name] = Passed(found[name].macs + counter.macs - started[name], shapes)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    # before the hooks below, so that a part's own formula is in its total
    with counter.declared_formulas(model):
        handles = [handle for name in parts for handle in watch(name, model.get_submodule(name))]
        try:
            with counter:
                run_on_meta(model, imgsz, channels)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _is_map(value: Any) -> bool:
    """Return True for a tensor with dimensions beside the batch."""
    return isinstance(value, Tensor) and value.dim() > 1


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, with the frozen ones and without buffers."""
    return sum(p.numel() for p in model.parameters())


def time_forward(model: nn.Module, x: Tensor, seconds: float = 1.0) -> float:
    """Return the median time of `model(x)` in ms; warm up, then repeat for about `seconds`."""

    def once() -> float:
        start = time.perf_counter()
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    with torch.inference_mode():
        for _ in range(2):
            once()
        times, end = [once()], time.perf_counter() + seconds
        while time.perf_counter() < end:
            times.append(once())
    return 1000 * statistics.median(times)

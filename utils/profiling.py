"""Multiply-accumulates, parameters and time of a model.

MACs are exact for every kernel that multiplies matrices: convolutions, linear layers, matrix
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
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from utils.engine.modes import evaluating

MACS: dict[str, Callable[[Sequence[Any], Any], int]] = {}
"""Formula by operator name: (arguments, result) -> multiply-accumulates."""


def macs_of(
    *operators: str,
) -> Callable[[Callable[[Sequence[Any], Any], int]], Callable[[Sequence[Any], Any], int]]:
    """Decorator that registers a formula for operators, named `namespace::operator`."""

    def add(formula: Callable[[Sequence[Any], Any], int]) -> Callable[[Sequence[Any], Any], int]:
        MACS.update(dict.fromkeys(operators, formula))
        return formula

    return add


@macs_of("aten::convolution", "aten::_convolution", "aten::convolution_overrideable")
def _convolution(args: Sequence[Any], result: Tensor) -> int:
    """Each output element takes Cin/groups x kernel products; a transposed one, each input element
    Cout/groups x kernel.
    """
    x, weight, transposed = args[0], args[1], args[6]
    return (x if transposed else result).numel() * weight[0].numel()


@macs_of("aten::mm", "aten::bmm", "aten::matmul", "aten::linear", "aten::mv", "aten::dot")
def _product(args: Sequence[Any], result: Tensor) -> int:
    """Each output element is a dot product over the first factor's last dimension."""
    return result.numel() * args[0].shape[-1]


@macs_of("aten::addmm", "aten::baddbmm", "aten::addbmm")
def _product_and_sum(args: Sequence[Any], result: Tensor) -> int:
    batch = args[1].shape[0] if args[1].dim() > result.dim() else 1  # addbmm sums over its batch
    return batch * result.numel() * args[1].shape[-1]


@macs_of(
    "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
)
def _attention(args: Sequence[Any], result: Any) -> int:
    """Query (.., L, E) x key (.., S, E), then the weights x value (.., S, V)."""
    query, key, value = args[:3]
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


@macs_of("torchvision::deform_conv2d")
def _deformable(args: Sequence[Any], result: Tensor) -> int:
    """As the plain convolution; interpolating its inputs is element-wise work.

    The offsets' convolution counts by itself.
    """
    return result.numel() * args[1][0].numel()


class _Counter(TorchDispatchMode):
    """Adds up the formulas of what runs; `paused` while a module that declares its own formula is
    inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.norm_elements = 0
        self.paused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::native_batch_norm":
            self.norm_elements += args[0].numel()
        formula = MACS.get(func._schema.name)
        if formula and not self.paused:
            self.total += formula(args, result)
        return result


@contextmanager
def _declared_formulas(model: nn.Module, counter: _Counter) -> Iterator[None]:
    """Lets modules with a method `macs(input, output) -> int` count instead of the operators inside
    them.
    """

    def enter(module: nn.Module, inputs: Any) -> None:
        counter.paused += 1

    def leave(module: Any, inputs: Any, output: Any) -> None:
        counter.paused -= 1
        if not counter.paused:
            counter.total += module.macs(inputs[0], output)

    handles = []
    for module in model.modules():
        if hasattr(module, "macs"):
            handles += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_on_meta(model: nn.Module, imgsz: int, channels: int = 3) -> None:
    """One forward pass of shapes only: takes milliseconds at any size; parameters, buffers and
    modes are untouched.
    """
    state = {
        name: tensor.to("meta")
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with torch.no_grad(), evaluating(model):
        functional_call(
            model, state, (torch.empty(1, channels, imgsz, imgsz, dtype=dtype, device="meta"),)
        )


def count_macs(model: nn.Module, imgsz: int = 640, channels: int = 3) -> int:
    """Multiply-accumulates of one image of imgsz x imgsz pixels."""
    return count_operations(model, imgsz, channels)[0]


def count_operations(model: nn.Module, imgsz: int = 640, channels: int = 3) -> tuple[int, int]:
    """(Multiply-accumulates, elements that pass through batch norms) of one image of imgsz x imgsz
    pixels.
    """
    counter = _Counter()
    with _declared_formulas(model, counter), counter:
        run_on_meta(model, imgsz, channels)
    return counter.total, counter.norm_elements


def macs_by_module(
    model: nn.Module, imgsz: int = 640, channels: int = 3
) -> dict[str, tuple[int, int, int]]:
    """(MACs, output height, output width) of every convolution and linear layer that runs, summed
    where one runs twice.
    """
    found: dict[str, tuple[int, int, int]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            height, width = output.shape[2:4] if output.dim() == 4 else (1, 1)
            transposed = isinstance(module, nn.ConvTranspose2d)
            macs = (inputs[0] if transposed else output).numel() * module.weight[0].numel()
            found[name] = (found.get(name, (0, 0, 0))[0] + macs, height, width)

        return hook

    layers = [
        (n, m)
        for n, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    handles = [layer.register_forward_hook(note(name)) for name, layer in layers]
    try:
        run_on_meta(model, imgsz, channels)
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class Passed:
    """What passed through a part of a model: its multiply-accumulates, and the shapes (C, H, W)
    that came out.
    """

    macs: int
    shapes: tuple[tuple[int, ...], ...]


def macs_by_part(
    model: nn.Module, parts: Sequence[str], imgsz: int = 640, channels: int = 3
) -> dict[str, Passed]:
    """For each named submodule what it did for one image; one that does not run has no MACs and no
    shapes.
    """
    counter = _Counter()
    started: dict[str, int] = {}
    found = dict.fromkeys(parts, Passed(0, ()))

    def watch(name: str, module: nn.Module) -> list[Any]:
        def enter(module: nn.Module, inputs: Any) -> None:
            started[name] = counter.total

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes = tuple(
                tuple(t.shape[1:])
                for t in (output if isinstance(output, list | tuple) else [output])
                if _is_map(t)
            )
            found[name] = Passed(found[name].macs + counter.total - started[name], shapes)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    with _declared_formulas(
        model, counter
    ):  # before the hooks below, so that a part's own formula is in its total
        handles = [handle for name in parts for handle in watch(name, model.get_submodule(name))]
        try:
            with counter:
                run_on_meta(model, imgsz, channels)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones too, buffers not."""
    return sum(p.numel() for p in model.parameters())


def time_forward(model: nn.Module, x: Tensor, seconds: float = 1.0) -> float:
    """Median time of `model(x)` in ms, after a warm-up, repeated for about `seconds`."""

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

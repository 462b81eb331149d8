"""MACs and parameters of the model that a mask would leave, without cutting it."""

import numpy as np
from torch import nn

from models.pruning_rules import InnerLayer
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.groups.graph import PRODUCERS
from prune_methods.surgery.cut import apply
from utils.profiling import count_macs, macs_by_module, macs_by_part

# pixels at which GFLOPs are stated; the speed-up of a convolutional net is the same at any size
COST_SIZE = 640


class Cost:
    """MACs of the deployed model as a function of the flat mask.

    A layer's MACs are proportional to its outputs x its inputs (a depthwise layer's: to its
    outputs). Layers that vanish in deployment - a block names them in `deploy_free` - do not count.
    Products between activations, as in attention, are proportional to the units of a block with a
    `unit_rule`. Elsewhere (`other`) they shrink by no such rule: where a cut changes them, each new
    mask is cut in a copy and measured: exact too, but tenths of a second instead of microseconds.
    """

    def __init__(self, model: nn.Module, index: ChannelIndex, imgsz: int = 640):
        free = deploy_free(model)
        layers = {
            n: v[0]
            for n, v in macs_by_module(model, imgsz).items()
            if n not in free and n in index.outs
        }
        self.layers = tuple(layers)  # names, in the order of their calls
        widths = {n: (len(index.outs[n]), len(index.ins.get(n, [0]))) for n in layers}
        self.unit = np.array([macs / (widths[n][0] * widths[n][1]) for n, macs in layers.items()])
        one = np.array([index.total])  # the entry that is always True: a depthwise layer's factor 1
        self.outs = _Segments([index.outs[n] for n in layers])
        self.ins = _Segments([index.ins.get(n, one) for n in layers])
        self._units, self._per_unit = _unit_products(model, index, imgsz)
        self.base = deployed_macs(model, imgsz)
        self.other = self.base - self._of_layers(index.all_kept())
        self._model, self._wiring, self._imgsz = model, index, imgsz
        self._measured: dict[bytes, int] = {}  # by mask, where the others change
        self._constant = not self.other or self._others_stay()
        self._sizes = (
            _Segments(list(index.outs.values())),
            _Segments([index.ins.get(n, one) for n in index.outs]),
        )
        self._per_weight = _parameters_per_channel(model, index)
        self._fixed_parameters = sum(p.numel() for p in model.parameters()) - self._owned(
            index.all_kept()
        )

    def macs(self, keep: np.ndarray) -> int:
        """Of the deployed model with this mask."""
        if self._constant:
            return self._of_layers(keep) + self.other
        key = keep.tobytes()
        if key not in self._measured:
            self._measured[key] = self._measure(keep)
        return self._measured[key]

    def _of_layers(self, keep: np.ndarray) -> int:
        products = float(self._per_unit @ self._units(keep)) if len(self._per_unit) else 0.0
        return round(float(self.unit @ (self.outs(keep) * self.ins(keep))) + products)

    def _measure(self, keep: np.ndarray) -> int:
        smaller = apply(self._model, self._wiring.groups, self._wiring.by_group(keep))
        return deployed_macs(smaller, self._imgsz)

    def _others_stay(self) -> bool:
        """Whether MACs that no layer owns are the same without every second channel: the heads of
        an attention may stay whole.
        """
        half = self._wiring.all_kept()
        for start, size in zip(self._wiring.starts, self._wiring.sizes, strict=True):
            half[start + 1 : start + size : 2] = False
        return self._measure(half) - self._of_layers(half) == self.other

    def parameters(self, keep: np.ndarray) -> int:
        """Of the training form with this mask."""
        return self._fixed_parameters + self._owned(keep)

    def _owned(self, keep: np.ndarray) -> int:
        outs, ins = self._sizes[0](keep), self._sizes[1](keep)
        per_pair, per_output = self._per_weight
        return int(per_pair @ (outs * ins) + per_output @ outs)


class _Segments:
    """Sum of the mask over many index lists at once."""

    def __init__(self, lists: list[np.ndarray]):
        self.index = np.concatenate(lists)
        self.starts = np.concatenate(([0], np.cumsum([len(x) for x in lists])))[:-1].astype(int)

    def __call__(self, keep: np.ndarray) -> np.ndarray:
        return np.add.reduceat(keep[self.index].astype(np.int64), self.starts)


def _unit_products(
    model: nn.Module, index: ChannelIndex, imgsz: int
) -> tuple[_Segments, np.ndarray]:
    """Of each block with a `unit_rule`: its units, by the channels of the layer that makes them,
    and MACs of its own for each.
    """
    blocks: dict[str, InnerLayer] = {}
    for name, module in model.named_modules():
        if rule := getattr(module, "unit_rule", None):
            blocks[name] = next(inner for inner in rule() if inner.kind in PRODUCERS)
    first = [index.outs[f"{name}.{inner.layer}"] for name, inner in blocks.items()]
    if not blocks:
        return _Segments([np.array([index.total])]), np.zeros(0)
    whole, layers = macs_by_part(model, list(blocks), imgsz), macs_by_module(model, imgsz)
    own = [
        whole[b].macs - sum(v[0] for n, v in layers.items() if n.startswith(f"{b}."))
        for b in blocks
    ]
    return _Segments(first), np.array(
        [macs / len(outs) for macs, outs in zip(own, first, strict=True)]
    )


def _parameters_per_channel(model: nn.Module, index: ChannelIndex) -> tuple[np.ndarray, np.ndarray]:
    """Parameters of each wired layer: per pair of output and input, and per output (bias, norm,
    bare parameter).
    """
    per_pair, per_output = [], []
    parameters = dict(model.named_parameters())
    for name, outs in index.outs.items():
        if name in parameters:  # a bare one
            own = [parameters[name]]
        else:
            own = list(model.get_submodule(name).parameters(recurse=False))
        pairs = [p for p in own if name in index.ins and p.dim() > 1]
        per_pair.append(
            sum(p.numel() for p in pairs) // (len(outs) * len(index.ins.get(name, [0])))
        )
        per_output.append(
            (sum(p.numel() for p in own) - sum(p.numel() for p in pairs)) // len(outs)
        )
    return np.array(per_pair), np.array(per_output)


def deploy_free(model: nn.Module) -> set[str]:
    """Names of the modules that are folded into another one in the deployed model."""
    free: set[str] = set()
    for name, module in model.named_modules():
        for child in getattr(module, "deploy_free", ()):
            branch = f"{name}.{child}".lstrip(".")
            free |= {
                branch,
                *(f"{branch}.{inner}" for inner, _ in module.get_submodule(child).named_modules()),
            }
    return free


def deployed_macs(model: nn.Module, imgsz: int = 640) -> int:
    """Measured MACs of the deployed model (of the model itself where it has no `fuse`)."""
    fuse = getattr(model, "fuse", None)
    return count_macs(fuse() if fuse else model, imgsz)

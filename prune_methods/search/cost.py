"""MACs and parameters of the model that a mask would leave, without cutting it."""

import numpy as np
from torch import nn

from models.pruning_rules import InnerLayer
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.groups.graph import PRODUCERS
from prune_methods.search.plan import COST_SIZE
from prune_methods.surgery.cut import cut
from prune_methods.surgery.verify import deployed_macs
from utils.profiling import macs_by_module, macs_by_part


class Cost:
    """MACs of the deployed model as a function of the flat mask.

    - The MACs of a layer are proportional to its outputs times its inputs; those of a depthwise
      layer to its outputs.
    - Layers that vanish in deployment, which a block names in `deploy_free`, do not count.
    - Products between activations, as in attention, are proportional to the units of a block with
      a `unit_rule`.
    - Other products (`other`) follow no such rule. Where a cut changes them, each new mask is cut
      in a copy and measured: exact too, but tenths of a second instead of microseconds.
    """

    def __init__(self, index: ChannelIndex, imgsz: int = COST_SIZE):
        self.index, self._imgsz = index, imgsz
        model, everything = index.model, index.all_kept()
        free = deploy_free(model)
        by_module = macs_by_module(model, imgsz)
        layers = {n: v[0] for n, v in by_module.items() if n not in free and n in index.outs}
        self.layers = tuple(layers)  # names, in the order of their calls
        widths = {n: (len(index.outs[n]), len(index.ins.get(n, [0]))) for n in layers}
        self.unit = np.array([macs / (widths[n][0] * widths[n][1]) for n, macs in layers.items()])
        one = np.array([index.total])  # the entry that is always True: a depthwise layer's factor 1
        self.outs = _Segments([index.outs[n] for n in layers])
        self.ins = _Segments([index.ins.get(n, one) for n in layers])
        self.pixels = np.array([by_module[n][1] * by_module[n][2] for n in layers])
        self.both_sides = _both_sides(self.outs, self.ins, index.total)
        self._units, self._per_unit = _unit_products(index, imgsz)
        self.base = deployed_macs(model, imgsz)
        self.other = self.base - self._of_layers(everything)
        self._measured: dict[bytes, int] = {}  # by mask, where the others change
        self._constant = not self.other or self._others_stay()
        self._sizes = (
            _Segments(list(index.outs.values())),
            _Segments([index.ins.get(n, one) for n in index.outs]),
        )
        self._per_weight = _parameters_per_channel(index)
        total = sum(p.numel() for p in model.parameters())
        self._fixed_parameters = total - self._owned(everything)

    def macs(self, keep: np.ndarray) -> int:
        """Return the MACs of the deployed model with this flat mask."""
        if self._constant:
            return self._of_layers(keep) + self.other
        key = keep.tobytes()
        if key not in self._measured:
            self._measured[key] = self._measure(keep)
        return self._measured[key]

    def parameters(self, keep: np.ndarray) -> int:
        """Return the parameters of the training form with this flat mask."""
        return self._fixed_parameters + self._owned(keep)

    def _of_layers(self, keep: np.ndarray) -> int:
        products = float(self._per_unit @ self._units(keep)) if len(self._per_unit) else 0.0
        return round(float(self.unit @ (self.outs(keep) * self.ins(keep))) + products)

    def _measure(self, keep: np.ndarray) -> int:
        return deployed_macs(cut(self.index, self.index.by_group(keep)), self._imgsz)

    def _others_stay(self) -> bool:
        """Tell whether removing every second channel leaves the MACs that no layer owns alike.

        The heads of an attention, for example, may stay whole.
        """
        half = self.index.all_kept()
        for start, size in zip(self.index.starts, self.index.sizes, strict=True):
            half[start + 1 : start + size : 2] = False
        return self._measure(half) - self._of_layers(half) == self.other

    def _owned(self, keep: np.ndarray) -> int:
        outs, ins = self._sizes[0](keep), self._sizes[1](keep)
        per_pair, per_output = self._per_weight
        return int(per_pair @ (outs * ins) + per_output @ outs)


class _Segments:
    """Sums of a flat mask over several lists of flat channels at once."""

    def __init__(self, lists: list[np.ndarray]):
        self.places = np.concatenate(lists)
        self.starts = np.concatenate(([0], np.cumsum([len(x) for x in lists])))[:-1].astype(int)

    def __call__(self, keep: np.ndarray) -> np.ndarray:
        """Return int (lists,): channels kept of each list."""
        return np.add.reduceat(keep[self.places].astype(np.int64), self.starts)

    def spread(self, values: np.ndarray, total: int) -> np.ndarray:
        """Add the value of each list, float (lists,), to its flat channels; return (total,)."""
        lengths = np.diff(self.starts, append=len(self.places))
        return np.bincount(self.places, np.repeat(values, lengths), total + 1)[:total]


def _both_sides(
    outs: _Segments, ins: _Segments, total: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find channels that are inputs and outputs of one layer, as in a residual block.

    Returns:
        Numbers of the layers, flat channels, and how often the channel is an output times how often
        an input; three int arrays (pairs,).
    """
    counts = []
    for side in (outs, ins):
        lengths = np.diff(side.starts, append=len(side.places))
        layer = np.repeat(np.arange(len(lengths)), lengths)
        free = side.places < total
        counts.append(np.unique(layer[free] * total + side.places[free], return_counts=True))
    (given, often), (read, how_often) = counts
    keys, first, second = np.intersect1d(given, read, return_indices=True)
    return keys // total, keys % total, often[first] * how_often[second]


def _unit_products(index: ChannelIndex, imgsz: int) -> tuple[_Segments, np.ndarray]:
    """Find the products between activations in blocks with a `unit_rule`.

    Returns:
        The units of each block, as the flat channels of the layer that makes them; and the MACs
        of the block's own for each unit, float (blocks,).
    """
    model = index.model
    blocks: dict[str, InnerLayer] = {}
    for name, module in model.named_modules():
        if rule := getattr(module, "unit_rule", None):
            blocks[name] = next(inner for inner in rule() if inner.kind in PRODUCERS)
    if not blocks:
        return _Segments([np.array([index.total])]), np.zeros(0)
    first = [index.outs[f"{name}.{inner.layer}"] for name, inner in blocks.items()]
    whole, layers = macs_by_part(model, list(blocks), imgsz), macs_by_module(model, imgsz)
    per_unit = []
    for block, outs in zip(blocks, first, strict=True):
        of_layers = sum(v[0] for n, v in layers.items() if n.startswith(f"{block}."))
        per_unit.append((whole[block].macs - of_layers) / len(outs))
    return _Segments(first), np.array(per_unit)


def _parameters_per_channel(index: ChannelIndex) -> tuple[np.ndarray, np.ndarray]:
    """Count the parameters of each indexed layer.

    Returns:
        Two int arrays (layers,): parameters per pair of output and input, and per output (bias,
        norm, bare parameter).
    """
    per_pair, per_output = [], []
    parameters = dict(index.model.named_parameters())
    for name, outs in index.outs.items():
        if name in parameters:  # a bare one
            own = [parameters[name]]
        else:
            own = list(index.model.get_submodule(name).parameters(recurse=False))
        total = sum(p.numel() for p in own)
        paired = sum(p.numel() for p in own if name in index.ins and p.dim() > 1)
        per_pair.append(paired // (len(outs) * len(index.ins.get(name, [0]))))
        per_output.append((total - paired) // len(outs))
    return np.array(per_pair), np.array(per_output)


def deploy_free(model: nn.Module) -> set[str]:
    """Return the names of the modules that are folded into another one in the deployed model."""
    free: set[str] = set()
    for name, module in model.named_modules():
        for child in getattr(module, "deploy_free", ()):
            branch = f"{name}.{child}".lstrip(".")
            inside = [inner for inner, _ in module.get_submodule(child).named_modules() if inner]
            free |= {branch, *(f"{branch}.{inner}" for inner in inside)}
    return free

"""Published figures of the custom structures, and a way to count ours alike.

See docs/structures.md. The published fused form folds the batch norms of `Conv` and little else: a
backbone that comes from elsewhere stays as it trains, RepConv keeps its branches. Implicit vectors
count, convolutions that never run too; moving kernels (DCNv2, DyHead) are no FLOPs.
"""

import copy
import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from models import Model, build_model
from models.registry import BLOCKS
from utils.config import load_yaml, resolve
from utils.profiling import count_operations, count_parameters, macs_by_module

NC = 2
BACKBONES = frozenset({"FasterNet", "RepViT", "ReXNet", "MobileNetV3", "MobileNetV3Small", "Timm"})
NORM = 4  # multiply-accumulates that these counters charge for an element of a batch norm


@dataclass(frozen=True)
class Published:
    """A line of the published tables (2 classes, 640 px) and its way of counting."""

    parameters: int
    gflops: float
    folds: frozenset[str] = frozenset({"Conv", "DWConv"})
    untouched: frozenset[str] = BACKBONES
    """Blocks that stay as they train, with all that is inside."""
    norms: bool = False
    """Whether the batch norms that are left count among the FLOPs."""
    size: int = 640
    """Pixels at which FLOPs are counted; they are scaled to 640 by the area."""
    unlike: int = 0
    """Parameters that the published model has and ours, so counted, has not."""
    share: float = 0.0
    """How far the parameters may be off, as a share."""
    gflops_off: float = 0.05
    """How far the GFLOPs may be off; tables round to 0.1."""
    why: str = ""


PUBLISHED = {
    "yolov5n": Published(1_761_871, 4.1),
    "yolov7-tiny": Published(6_010_302, 13.0),
    "yolov5n-c3faster-repconv": Published(1_614_495, 3.7, why="RepConv keeps its branches"),
    "yolov5n-repvit-c2f": Published(
        6_001_647,
        16.2,
        norms=True,
        size=32,
        why="FLOPs of 32 px times 400, where the gates' 1x1 convolutions weigh too much",
    ),
    "yolov5n-fasternet-goldyolo-asf": Published(
        6_442_926, 10.5, norms=True, why="RepConv, ScalSeq, attention_model unfolded"
    ),
    "yolov7-tiny-dcn-afpn": Published(
        4_564_641,
        11.7,
        unlike=512,
        why="the published moving kernels have a bias (2 x 256) before their batch norms",
    ),
    "yolov7-tiny-fasternet-dbb": Published(
        4_092_258,
        8.5,
        frozenset({"Conv", "DWConv", "DiverseBranchBlock"}),
        norms=True,
        why="DiverseBranchBlock is folded",
    ),
    "yolov7-tiny-mobilenetv3-lsk-tscode-repconv": Published(
        24_665_523,
        33.0,
        share=1e-4,
        gflops_off=0.15,
        why="the index was found by counting and is one of several",
    ),
    "yolov7-tiny-rexnet-vovgscsp-decoupled": Published(
        6_512_095,
        11.3,
        share=5e-3,
        why="a detail of the published neck is unknown: 31,264 parameters",
    ),
    "yolov7-tiny-rexnet-vovgscsp-dyhead-decoupled": Published(
        6_858_519, 14.8, share=5e-3, why="the same detail; the step from the line above is exact"
    ),
}
"""By YAML name, the two stock models first."""


@dataclass(frozen=True)
class Counted:
    """Counts of a model by the convention of its line: parameters, and GFLOPs at 640 px."""

    parameters: int
    gflops: float


def cfg_as_published(name: str) -> dict[str, Any]:
    """Return the parsed YAML with the published convolutions that never run.

    A block has them by its option `dead_convs`.
    """
    cfg = load_yaml(resolve(name, "model"))
    for section in ("backbone", "head"):
        cfg[section] = [_with_dead_convs(list(row)) for row in cfg[section]]
    return cfg


def _with_dead_convs(row: list[Any]) -> list[Any]:
    names = [p for p in inspect.signature(BLOCKS[row[2]].from_yaml).parameters if p != "context"]
    if "dead_convs" in names:
        given = row[3] if isinstance(row[3], dict) else dict(zip(names, row[3], strict=False))
        row[3] = given | {"dead_convs": True}
    return row


def count_as_published(name: str) -> Counted:
    """Return parameters and GFLOPs at 640 px of a custom YAML, by the convention of its line."""
    line = PUBLISHED[name]
    model = fused_as_published(
        build_model(cfg_as_published(name), nc=NC), line.folds, line.untouched
    )
    macs, norm_elements = count_operations(model, line.size)
    kinds = {n: type(m).__name__ for n, m in model.named_modules()}
    moving = sum(
        v[0] for n, v in macs_by_module(model, line.size).items() if kinds[n].startswith("Deform")
    )
    total = macs - moving + (NORM * norm_elements if line.norms else 0)
    return Counted(count_parameters(model) + line.unlike, 2 * total / 1e9 * (640 / line.size) ** 2)


def fused_as_published(model: Model, folds: Collection[str], untouched: Collection[str]) -> Model:
    """Return a copy in which only blocks of the names `folds` are folded.

    Blocks of the names `untouched` stay as they are, with all that is inside.
    """
    copied = copy.deepcopy(model).eval()
    _fold(copied.model, folds, untouched)
    return copied


def _fold(module: nn.Module, folds: Collection[str], untouched: Collection[str]) -> None:
    for name, child in module.named_children():
        kind = type(child).__name__
        if kind in untouched:
            continue
        _fold(child, folds, untouched)
        if kind in folds:
            setattr(module, name, cast(Any, child).fuse())

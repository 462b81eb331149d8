"""The smallest rows that show each registered block at work, for tests/test_every_block.py.

The rows of a case stand behind five convolutions. The last row is the block, and a small head reads
its maps `outputs`; the head reads row 4 too, so that no row stays unread:

| row | 0 | 1 | 2 | 3 | 4 |
|---|---|---|---|---|---|
| channels | 8 | 16 | 24 | 32 | 32 |
| stride | 2 | 4 | 8 | 16 | 16 |
"""

from dataclasses import dataclass
from typing import Any

from models.blocks.backbone import _Named
from models.registry import BLOCKS

FIRST = 5  # index of a case's first row
STEM = [
    [-1, 1, "Conv", [8, 3, 2]],
    [-1, 1, "Conv", [16, 3, 2]],
    [-1, 1, "Conv", [24, 3, 2]],
    [-1, 1, "Conv", [32, 3, 2]],
    [-1, 1, "Conv", [32, 3, 1]],
]


@dataclass(frozen=True)
class Case:
    """Rows that use a block, and the checks that the block is known not to pass."""

    rows: tuple[Any, ...]
    """Rows of the YAML, of which the last is the block."""
    outputs: tuple[int, ...] = (0,)
    """Maps of the block that the head reads; a backbone's count from 0, empty ones included."""
    whole: str = ""
    """Reason why no part of the block can be pruned."""
    unprovable: str = ""
    """Reason why some layers stay whole by measurement, and not by a rule of the block."""
    shut: str = ""
    """Layer that a ReLU may shut off in so small a model, so that it gets no gradient here.

    A test of the block's own shows that the layer gets one.
    """
    export: str = ""
    """Reason why the older exporter of ONNX refuses the block."""
    needs: str = ""
    """Package without which the block cannot be built."""
    backbone: bool = False
    """Whether the block reads the image."""


def one(name: str, *args: Any, source: Any = 3, **facts: Any) -> Case:
    """Return a case of one row."""
    return Case(([source, 1, name, list(args)],), **facts)


def backbone(name: str, *args: Any, first: int = 1, **facts: Any) -> Case:
    """Return a case of a backbone whose maps from number `first` on are read, of five."""
    return Case(
        ([-1, 1, name, list(args)],), outputs=tuple(range(first, 5)), backbone=True, **facts
    )


MIXED = "the trace cannot tell which channels of the input become which of the output"

CASES: dict[str, Case] = {
    # plain layers
    "Conv": one("Conv", 24, 3),
    "DWConv": one("DWConv", 32, 3),
    "Focus": one("Focus", 24, 3),
    "GhostConv": one("GhostConv", 24),
    "nn.Conv2d": one("nn.Conv2d", 24, 3, 1, 1),
    "nn.BatchNorm2d": one("nn.BatchNorm2d"),
    "nn.ConvTranspose2d": one(
        "nn.ConvTranspose2d", 24, 2, 2, whole="a transposed convolution's channels are not cut"
    ),
    # layers without parameters
    "nn.Upsample": one("nn.Upsample", "None", 2, "nearest"),
    "nn.MaxPool2d": one("nn.MaxPool2d", 2),
    "nn.AvgPool2d": one("nn.AvgPool2d", 2),
    "nn.AdaptiveAvgPool2d": one("nn.AdaptiveAvgPool2d", 2),
    "nn.ZeroPad2d": one("nn.ZeroPad2d", 1),
    "nn.Identity": one("nn.Identity"),
    "nn.PixelShuffle": one("nn.PixelShuffle", 2, whole=MIXED),
    "ReOrg": one("ReOrg"),
    "MP": one("MP"),
    "SP": one("SP", 5),
    "Concat": one("Concat", 1, source=[3, 4]),
    "Shortcut": one("Shortcut", 0, source=[3, 4]),
    "BiFPN_Concat": one("BiFPN_Concat", 1, source=[3, 4]),
    "BiFPN_Add": one("BiFPN_Add", source=[3, 4]),
    "Zoom_cat": one("Zoom_cat", source=[1, 2, 3]),
    "SimFusion_4in": one("SimFusion_4in", source=[0, 1, 2, 3]),
    "AdvPoolFusion": one("AdvPoolFusion", source=[2, 3]),
    # blocks
    "Bottleneck": one("Bottleneck", 32),
    "C3": one("C3", 32),
    "C3Ghost": one(
        "C3Ghost",
        32,
        unprovable=(
            "its residual stream needs one layer to hold each channel twice, which the graph"
            " cannot say"
        ),
    ),
    "BottleneckCSP": one("BottleneckCSP", 32),
    "BottleneckCSPA": one("BottleneckCSPA", 32),
    "BottleneckCSPB": one("BottleneckCSPB", 32),
    "BottleneckCSPC": one("BottleneckCSPC", 32),
    "C3TR": one("C3TR", 32),
    "DownC": one("DownC", 32),
    "Stem": one("Stem", 32, source=1),
    "C2f": one("C2f", 32, True),
    "C3_Faster": one("C3_Faster", 64),
    "PConv": one("PConv"),
    "SPP": one("SPP", 32),
    "SPPF": one("SPPF", 32),
    "SPPCSPC": one("SPPCSPC", 32),
    "RepConv": one("RepConv", 32, 3),
    "DiverseBranchBlock": one("DiverseBranchBlock", 24, 3),
    "DCNv2": one("DCNv2", 24),
    "GSConv": one("GSConv", 24),
    "VoVGSCSP": one("VoVGSCSP", 32),
    "SE": one("SE", 4),
    "ECA": one("ECA"),
    "LSKBlock": one("LSKBlock"),
    "CBAM": one("CBAM", 4),
    "CARAFE": one("CARAFE", 2, 3, 16),
    "DySample": one(
        "DySample",
        2,
        whole=(
            "its only layer says where to sample; the channels pass through and follow their"
            " producers"
        ),
    ),
    # necks
    "ScalSeq": one("ScalSeq", 24, source=[1, 2, 3]),
    "attention_model": one("attention_model", source=[3, 4]),
    "SimFusion_3in": one("SimFusion_3in", 24, source=[1, 2, 3]),
    "IFM": one("IFM", [16, 8], 24, 1),
    "InjectionMultiSum_Auto_pool": Case(
        (
            [3, 1, "IFM", [[16, 8], 24, 1]],
            [[2, -1], 1, "InjectionMultiSum_Auto_pool", [24, [16, 8], 1]],
        )
    ),
    "PyramidPoolAgg": one("PyramidPoolAgg", 24, source=[1, 2, 3]),
    "TopBasicLayer": one("TopBasicLayer", 32, [16, 8], 1),
    "ASFF": one("ASFF", source=[3, 4]),
    "AFPN": one("AFPN", 24, 2, 1, source=[1, 2, 3], outputs=(0, 1, 2)),
    "DyHead": Case(
        ([2, 1, "Conv", [32, 1]], [[5, 3], 1, "DyHead", []]), outputs=(0, 1), shut="scale.conv"
    ),
    # backbones
    "FasterNet": backbone("FasterNet", "t0"),
    "MobileNetV3": backbone("MobileNetV3", first=0),
    "ReXNet": backbone("ReXNet", 1.0, first=0),
    "RepViT": backbone("RepViT", "m1"),
    "Timm": backbone("Timm", "mobilenetv3_small_050", first=0, needs="timm"),
    # heads
    "Detect": one("Detect", "nc", "anchors", source=[2, 4]),
    "IDetect": one("IDetect", "nc", "anchors", source=[2, 4]),
    "DecoupledHead": one("DecoupledHead", "nc", "anchors", source=[2, 4]),
    "TSCODE": Case(([4, 1, "Conv", [32, 3, 2]], [[2, 4, 5], 1, "TSCODE", ["nc", "anchors"]])),
}
"""A case of each registered block; add a new block here, see docs/custom_block.md."""


def blocks_to_test() -> list[str]:
    """Return the registered names, without names for sizes of a backbone."""
    return [name for name in BLOCKS if not isinstance(BLOCKS[name], _Named)]


def must_have_a_row(name: str) -> bool:
    """Return whether a block must have a case.

    Blocks of a user's own files may have one; blocks that other tests register need none.
    """
    module = getattr(BLOCKS[name], "__module__", "")
    return module.startswith("models.") and not module.startswith("models.blocks.custom.")


def model_of(case: Case) -> dict[str, Any]:
    """Return the YAML of a case."""
    rows = list(case.rows)
    head = rows[-1][2] if getattr(BLOCKS[rows[-1][2]], "is_head", False) else None
    first = len(rows) - 1 + (0 if case.backbone else FIRST)
    read = [first + i for i in case.outputs]
    if not case.backbone:
        read.append(4)  # so that no row of the stem is left unread
    joined = [[i, 1, "Conv", [16, 1]] for i in read]
    start = first + max(case.outputs, default=0) + 1 if not case.backbone else 5
    detect = [[list(range(start, start + len(joined))), 1, "Detect", ["nc", "anchors"]]]
    return {
        "nc": 2,
        "anchors": 2,
        "backbone": ([] if case.backbone else STEM) + rows[: None if not head else -1],
        "head": rows[-1:] if head else joined + detect,
    }

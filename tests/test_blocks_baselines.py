"""Blocks of YOLOv7's larger models and baselines: by their equations and by published counts."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models import build_model
from models.blocks.csp import C3, BottleneckCSPA, BottleneckCSPB, BottleneckCSPC
from models.blocks.downsampling import DownC, Stem
from models.blocks.transformer import C3TR, TransformerLayer
from models.registry import BLOCKS, BuildContext
from utils.profiling import count_parameters

ANCHORS = [[12, 16, 19, 36, 40, 28], [36, 75, 76, 55, 72, 146], [142, 110, 192, 243, 459, 401]]


def context(c1: int, **facts: Any) -> BuildContext:
    return BuildContext(in_channels=(c1,), in_strides=(4.0,), **facts)


def test_downc_by_its_equation() -> None:
    torch.manual_seed(0)
    block, x = DownC(8, 12).eval(), torch.randn(2, 8, 6, 10)
    expected = torch.cat((block.cv2(block.cv1(x)), block.cv3(F.max_pool2d(x, 2))), 1)
    assert torch.equal(block(x), expected) and expected.shape == (2, 12, 3, 5)
    names = {name.rpartition(".")[0] for name in block.state_dict()}
    assert names == {f"cv{i}.{kind}" for i in (1, 2, 3) for kind in ("conv", "bn")}
    assert (block.cv1.conv.out_channels, block.cv2.conv.stride) == (8, (2, 2))


def test_downc_needs_an_even_width() -> None:
    with pytest.raises(ValueError, match="each path makes half"):
        DownC.from_yaml(context(8, nc=2, anchors=3), 21)  # a width of the head stays as it is


def test_stem_by_its_equation() -> None:
    torch.manual_seed(0)
    block, x = Stem(3, 16).eval(), torch.randn(2, 3, 16, 24)
    first = block.cv1(x)
    expected = block.cv4(torch.cat((block.cv3(block.cv2(first)), F.max_pool2d(first, 2)), 1))
    assert torch.equal(block(x), expected) and expected.shape == (2, 16, 4, 6)
    assert [block.cv1.conv.out_channels, block.cv3.conv.out_channels] == [8, 8]


def test_csp_blocks_by_their_equations() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 7)
    a, b, c = (
        BLOCKS[f"BottleneckCSP{kind}"].from_yaml(context(8, repeats=2), 16) for kind in "ABC"
    )
    a, b, c = a.eval(), b.eval(), c.eval()
    assert isinstance(a, BottleneckCSPA) and isinstance(b, BottleneckCSPB)
    assert isinstance(c, BottleneckCSPC)
    assert torch.equal(a(x), a.cv3(torch.cat((a.m(a.cv1(x)), a.cv2(x)), 1)))
    shared = b.cv1(x)
    assert torch.equal(b(x), b.cv3(torch.cat((b.m(shared), b.cv2(shared)), 1)))
    assert torch.equal(c(x), c.cv4(torch.cat((c.cv3(c.m(c.cv1(x))), c.cv2(x)), 1)))
    assert [len(block.m) for block in (a, b, c)] == [2, 2, 2]
    assert [step.add for step in b.m] == [False, False] and all(step.add for step in c.m)
    assert [block.cv1.conv.out_channels for block in (a, b, c)] == [8, 16, 8]


def test_csp_a_has_the_weights_of_c3() -> None:
    assert C3(8, 16, 2).state_dict().keys() == BottleneckCSPA(8, 16, 2).state_dict().keys()


def test_c3tr_is_pytorchs_attention_in_a_c3() -> None:
    torch.manual_seed(0)
    block = C3TR.from_yaml(context(8, repeats=2), 16).eval()
    for name, value in block.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(value)
    x = torch.randn(2, 8, 3, 5)
    tokens = block.cv1(x).flatten(2).permute(2, 0, 1)  # (cells, N, C), as PyTorch has them
    tokens = tokens + block.m.linear(tokens)
    for layer in block.m.tr:
        tokens = layer.ma(layer.q(tokens), layer.k(tokens), layer.v(tokens))[0] + tokens
        tokens = layer.fc2(layer.fc1(tokens)) + tokens
    inner = tokens.permute(1, 2, 0).reshape(2, 8, 3, 5)
    expected = block.cv3(torch.cat((inner, block.cv2(x)), 1))
    torch.testing.assert_close(block(x), expected)
    names = set(block.m.state_dict())
    own = {"q.weight", "k.weight", "v.weight", "ma.in_proj_weight", "ma.in_proj_bias"}
    own |= {"ma.out_proj.weight", "ma.out_proj.bias", "fc1.weight", "fc2.weight"}
    assert names == {"linear.weight", "linear.bias"} | {f"tr.{i}.{n}" for i in (0, 1) for n in own}


def test_a_deployed_transformer_layer_has_half_the_linear_layers() -> None:
    torch.manual_seed(0)
    layer, x = TransformerLayer(8, 4).eval(), torch.randn(2, 6, 8)
    torch.nn.init.normal_(layer.ma.in_proj_bias)
    torch.nn.init.normal_(layer.ma.out_proj.bias)
    deployed = layer.fuse()
    torch.testing.assert_close(deployed(x), layer(x))
    assert sum(p.numel() for p in deployed.parameters()) == 5 * 64 + 3 * 8 + 8


def test_c3tr_needs_a_multiple_of_its_heads() -> None:
    with pytest.raises(ValueError, match="4 heads"):
        C3TR(8, 12)


def yolor_csp() -> dict[str, Any]:
    """YOLOv4-CSP of Scaled-YOLOv4 (Wang, CVPR 2021), which YOLOv7's paper lists as YOLOR-CSP."""
    backbone: list[Any] = [[-1, 1, "Conv", [32, 3, 1]]]
    for width, repeats in ((64, 0), (128, 2), (256, 8), (512, 8), (1024, 4)):
        backbone.append([-1, 1, "Conv", [width, 3, 2]])
        block = "BottleneckCSPC" if repeats else "Bottleneck"
        backbone.append([-1, repeats or 1, block, [width]])
    head: list[Any] = [[-1, 1, "SPPCSPC", [512]]]  # row 11
    for width, route in ((256, 8), (128, 6)):  # rows 12 to 16, 17 to 21
        head += [
            [-1, 1, "Conv", [width, 1, 1]],
            [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
            [route, 1, "Conv", [width, 1, 1]],
            [[-1, -2], 1, "Concat", [1]],
            [-1, 2, "BottleneckCSPB", [width]],
        ]
    head.append([-1, 1, "Conv", [256, 3, 1]])  # row 22
    for width, route in ((256, 16), (512, 11)):  # rows 23 to 26, 27 to 30
        head += [
            [-2, 1, "Conv", [width, 3, 2]],
            [[-1, route], 1, "Concat", [1]],
            [-1, 2, "BottleneckCSPB", [width]],
            [-1, 1, "Conv", [2 * width, 3, 1]],
        ]
    head.append([[22, 26, 30], 1, "IDetect", ["nc", "anchors"]])
    return {"nc": 80, "anchors": ANCHORS, "backbone": backbone, "head": head}


def yolov7_e6() -> dict[str, Any]:
    """The deployed form of YOLOv7-E6 (Wang, CVPR 2023): E-ELAN with DownC between its stages."""
    rows: list[Any] = [[-1, 1, "ReOrg", []], [-1, 1, "Conv", [80, 3, 1]]]

    def elan(first: int, inner: int, out: int, neck: bool) -> None:
        rows.append([-1, 1, "Conv", [first, 1, 1]])
        rows.append([-2, 1, "Conv", [first, 1, 1]])
        rows.extend([-1, 1, "Conv", [inner, 3, 1]] for _ in range(6))
        joined = list(range(-1, -9, -1)) if neck else [-1, -3, -5, -7, -8]
        rows.append([joined, 1, "Concat", [1]])
        rows.append([-1, 1, "Conv", [out, 1, 1]])

    stages = []
    for down, width in ((160, 64), (320, 128), (640, 256), (960, 384), (1280, 512)):
        rows.append([-1, 1, "DownC", [down]])
        elan(width, width, down, neck=False)
        stages.append(len(rows) - 1)
    rows.append([-1, 1, "SPPCSPC", [640]])
    tops = [len(rows) - 1]
    for width, route in ((480, stages[3]), (320, stages[2]), (160, stages[1])):
        rows.append([-1, 1, "Conv", [width, 1, 1]])
        rows.append([-1, 1, "nn.Upsample", ["None", 2, "nearest"]])
        rows.append([route, 1, "Conv", [width, 1, 1]])
        rows.append([[-1, -2], 1, "Concat", [1]])
        elan(width * 4 // 5, width * 2 // 5, width, neck=True)
        tops.append(len(rows) - 1)
    outs = [tops[3]]
    for width, route in ((320, tops[2]), (480, tops[1]), (640, tops[0])):
        rows.append([-1, 1, "DownC", [width]])
        rows.append([[-1, route], 1, "Concat", [1]])
        elan(width * 4 // 5, width * 2 // 5, width, neck=True)
        outs.append(len(rows) - 1)
    ends = []
    for source, width in zip(outs, (320, 640, 960, 1280), strict=True):
        rows.append([source, 1, "Conv", [width, 3, 1]])
        ends.append(len(rows) - 1)
    rows.append([ends, 1, "Detect", ["nc", "anchors"]])
    return {
        "nc": 80,
        "anchors": [[8, 8, 16, 16, 32, 32]] * 4,
        "backbone": rows[:-1],
        "head": rows[-1:],
    }


@pytest.mark.parametrize(("cfg", "millions"), [(yolor_csp(), 52.9), (yolov7_e6(), 97.2)])
def test_published_parameters(cfg: dict[str, Any], millions: float) -> None:
    """Tables 1 and 2 of YOLOv7's paper: YOLOR-CSP 52.9 M, YOLOv7-E6 97.2 M parameters."""
    assert round(count_parameters(build_model(cfg)) / 1e6, 1) == millions

"""The published figures of the custom structures, each by the tables' own way of counting, and what
we deploy beside it.
"""

import pytest
import torch

from benchmarks.published import (
    NC,
    PUBLISHED,
    cfg_as_published,
    count_as_published,
    fused_as_published,
)
from models import build_model
from utils.config import ROOT
from utils.profiling import count_parameters

PRESENT = {path.stem for path in (ROOT / "models/configs").rglob("*.yaml")}

# what our deployed form has: parameters (everything folded), GFLOPs at 640 px with moving kernels
DEPLOYED: dict[str, tuple[int, float]] = {
    "yolov5n": (1_761_871, 4.13),
    "yolov7-tiny": (6_009_343, 13.03),
    "yolov5n-c3faster-repconv": (1_593_439, 3.63),
    "yolov5n-repvit-c2f": (5_969_991, 15.49),
    "yolov5n-fasternet-goldyolo-asf": (6_408_866, 10.25),
    "yolov7-tiny-dcn-afpn": (4_563_170, 12.65),
    "yolov7-tiny-fasternet-dbb": (4_086_907, 8.36),
    "yolov7-tiny-mobilenetv3-lsk-tscode-repconv": (24_137_039, 32.78),
    "yolov7-tiny-rexnet-vovgscsp-decoupled": (6_291_168, 11.28),
    "yolov7-tiny-rexnet-vovgscsp-dyhead-decoupled": (6_637_784, 22.08),
}


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n in PRESENT])
def test_as_published(name: str):
    line, ours = PUBLISHED[name], count_as_published(name)
    assert abs(ours.parameters - line.parameters) <= line.share * line.parameters, ours
    assert abs(ours.gflops - line.gflops) <= line.gflops_off + 1e-9, ours


@pytest.mark.parametrize("name", [n for n in DEPLOYED if n in PRESENT])
def test_as_deployed(name: str):
    info = build_model(name, nc=NC).info()
    assert (info["deployed_parameters"], round(info["gflops_fused"], 2)) == DEPLOYED[name]


@pytest.mark.parametrize("name", [n for n in DEPLOYED if n in PRESENT])
def test_images_need_only_be_multiples_of_32_px(name: str):
    """As rectangular batches are: maps of 5 cells are halved to 3, and what is doubled again must
    meet 5.
    """
    model = build_model(name, nc=NC).train()
    with torch.no_grad():
        maps = model(torch.rand(2, 3, 96, 160))  # two, for batch norms over single cells
    assert [(*y.shape[2:4],) for y in maps] == [(12, 20), (6, 10), (3, 5)]


def test_only_the_named_blocks_fold():
    """Unfolded, a RepConv of c -> c channels at stride 2 has c^2 + 3c parameters more (a 1x1, and 2
    x 2c - c of batch norms).
    """
    model = build_model("yolov7-tiny", nc=NC)
    assert count_parameters(fused_as_published(model, {"Conv"}, ())) == 6_010_302
    assert count_parameters(fused_as_published(model, (), ())) == count_parameters(model)
    cfg = dict(model.cfg)
    cfg["head"] = [
        row if i != 29 else [row[0], 1, "RepConv", [128, 3, 2]] for i, row in enumerate(cfg["head"])
    ]
    rep = next(m for m in build_model(cfg, nc=NC).modules() if type(m).__name__ == "RepConv")
    c1, c2 = rep.rbr_1x1[0].in_channels, rep.rbr_1x1[0].out_channels
    assert count_parameters(rep) - count_parameters(rep.eval().fuse()) == c1 * c2 + 3 * c2


def test_dead_convolutions_are_an_option(monkeypatch):
    cfg = cfg_as_published("yolov5n")
    assert cfg == build_model("yolov5n").cfg  # nothing there has any

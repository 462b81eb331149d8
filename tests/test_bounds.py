"""A model YAML of a stranger builds, or ends in one short line, soon; sizes suit every level."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models import build_model
from models.bounds import MOST_VALUES
from tests.conftest import ROOT
from utils.errors import UserError

TINY: dict[str, Any] = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 2, "C3", [8]]],
    "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
}


def changed(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(TINY) | changes


def with_row(row: Any) -> dict[str, Any]:
    cfg = copy.deepcopy(TINY)
    cfg["backbone"][1] = row
    return cfg


@pytest.mark.parametrize(
    "cfg",
    [
        changed(nc=10**9),
        changed(nc="1e9"),
        changed(nc=True),
        changed(depth_multiple=300),
        changed(depth_multiple=float("nan")),
        changed(width_multiple=10**6),
        changed(depth_multiple=100, backbone=[[-1, 1, "Conv", [8]], [-1, 900, "C3", [8]]]),
        changed(activation=3),
        changed(activation=["SiLU"]),
        changed(anchors=10**9),
        changed(anchors=[[1, 2] * 10**5]),
        changed(anchors=[[1e300, 1]]),
        changed(anchors={"a": 1}),
        changed(backbone={"a": 1}),
        changed(backbone=[]),
        changed(backbone=[[-1, 1, "Conv", [8, 3, 2]]] * 3000),
        with_row([-1, 10**9, "C3", [8]]),
        with_row([-1, 1, "Conv", [8, 100_000]]),
        with_row([-1, 1, "Conv", [8192, 10**3]]),
        with_row([-1, 1, "Conv", [10**30]]),
        with_row([-1, 1, "Conv", [8, -1]]),
        with_row([-1, 1, "Conv", [8, 1, 0]]),
        with_row([-1, 1, "Conv", [8, 1, 1, None, 0]]),
        with_row([-1, 1, "C3", [8, True, 1, float("inf")]]),
        with_row([-1, 1, "C3", [8, True, 1, 0]]),
        with_row([-1, 1, "nn.Upsample", [None, 10**6]]),
        with_row([-1, 1, "nn.Upsample", [None, 0]]),
        with_row([-1, 1, "nn.MaxPool2d", [0]]),
        with_row([-1, 1, "nn.PixelShuffle", [0]]),
        with_row([-1, 1, "nn.ZeroPad2d", [10**6]]),
        with_row([-1, 1, "nn.AdaptiveAvgPool2d", [10**6]]),
        with_row([-1, 1, "a" * 10**6, [8]]),
        with_row([-1, 1, "Conv", [8] * 10**5]),
        with_row([["a" * 10**6], 1, "Conv", [8]]),
        with_row("Conv"),
        with_row([-1, 1, "Conv", [8, [[[[[3]]]]]]]),
    ],
    ids=lambda cfg: str(cfg)[:0],
)
def test_a_yaml_that_asks_for_too_much(cfg: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        build_model(cfg)
    assert "\n" not in str(error.value) and len(str(error.value)) < 3000


@pytest.mark.parametrize("ch", [1, 4, 6, True, "3"])
def test_other_than_three_channels_are_refused_in_a_line(ch: Any) -> None:
    with pytest.raises(UserError, match="ch: ") as error:
        build_model(changed(ch=ch))
    assert ("RGB" in str(error.value)) == (type(ch) is int)
    assert build_model(changed(ch=3)).nc == 2


def test_the_largest_published_models_are_far_below_the_bound() -> None:
    model = build_model("yolov5x")
    assert sum(p.numel() for p in model.parameters()) * 7 < MOST_VALUES


def p34(head: str = "Detect") -> dict[str, Any]:
    """yolov5n whose head reads strides 8 and 16 only; its neck reads stride 32."""
    cfg = yaml.safe_load(Path(ROOT / "models/configs/yolov5/yolov5n.yaml").read_text())
    rows = cfg["head"][:-1]
    return cfg | {
        "anchors": cfg["anchors"][:2],
        "head": [*rows, [[17, 20], 1, head, ["nc", "anchors"]]],
    }


def test_sizes_are_multiples_of_the_deepest_map_that_is_read() -> None:
    model = build_model(p34(), nc=2)
    assert model.stride.tolist() == [8, 16] and model.max_stride == 32
    assert model.fuse().max_stride == 32
    model(torch.zeros(1, 3, 64, 96))
    assert build_model(TINY).max_stride == 2 and build_model("yolov5n").max_stride == 32


def test_a_map_of_one_cell_is_pooled_or_deep() -> None:
    deep = [[-1, 1, "Conv", [8, 3, 2]] for _ in range(7)]
    up = [[-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 5], 1, "Concat", [1]]]
    head = [[[-1], 1, "Detect", ["nc", "anchors"]]]
    assert build_model(changed(backbone=deep, head=up + head)).max_stride == 128
    pooled = [*deep[:3], [-1, 1, "nn.AdaptiveAvgPool2d", [1]], [[-1, 2], 1, "Shortcut", []]]
    assert build_model(changed(backbone=pooled, head=head)).max_stride == 8


def test_bounds_cost_no_time() -> None:
    start = time.process_time()
    build_model("yolov5n")
    assert time.process_time() - start < 20

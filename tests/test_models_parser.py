"""Rows, indices, tags, and what is said about a wrong YAML."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_model
from models.parser import OTHER_HEADS
from models.registry import BLOCKS, BuildContext
from utils.config import save_yaml
from utils.errors import UserError


def tiny(**changes: Any) -> dict[str, Any]:
    """A small model with every kind of `from`."""
    cfg: dict[str, Any] = {
        "nc": 2,
        "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
        "backbone": [
            [-1, 1, "Conv", [16, 3, 2], "stem"],
            [-1, 2, "Conv", {"c2": 16, "k": 3}],
            [-1, 1, "MP", []],
            [["stem", -2], 1, "Concat", [1]],
        ],
        "head": [
            [2, 1, "Conv", [24, 1, 1]],
            [-2, 1, "C3", [32, False]],
            [[5, 4], 1, "Detect", ["nc", "anchors"]],
        ],
    }
    return cfg | changes


def with_row(section: str, number: int, row: Any) -> dict[str, Any]:
    cfg = tiny()
    cfg[section][number] = row
    return cfg


@BLOCKS.register("TestSplit")
class Split(nn.Module):
    """A row with two outputs, channels 1 : 3."""

    @classmethod
    def from_yaml(cls, context: BuildContext) -> "Split":
        return cls()

    def forward(self, x: Tensor) -> list[Tensor]:
        quarter = x.shape[1] // 4
        return [x[:, :quarter], x[:, quarter:]]


def test_sources_tags_and_repeats() -> None:
    model = build_model(tiny())
    rows = model.rows
    assert [row.source for row in rows] == [(-1,), (0,), (1,), (0, 1), (2,), (3,), (5, 4)]
    assert rows[0].tag == "stem"
    assert isinstance(rows[1].module, nn.Sequential)
    assert len(rows[1].module) == 2
    assert "model.1.1.conv.weight" in model.state_dict()
    assert model.stride.tolist() == [2, 4]


def test_depth_multiple_scales_repeats_but_never_below_one() -> None:
    counts = {d: len(build_model(tiny(depth_multiple=d)).model[1]) for d in (1.0, 1.5, 3)}
    assert counts == {1.0: 2, 1.5: 3, 3: 6}
    assert not isinstance(build_model(tiny(depth_multiple=0.1)).model[1], nn.Sequential)


def test_multi_output_rows_count_every_output() -> None:
    cfg = tiny(
        backbone=[
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 1, "TestSplit", []],  # outputs 1 (4 channels) and 2 (12 channels)
            [-1, 1, "Conv", [8, 3, 2]],  # reads output 2, is model.3
            [1, 1, "Conv", [8, 1, 1], "small"],
        ],
        head=[[["small", 3], 1, "Detect", ["nc", "anchors"]]],
    )
    model = build_model(cfg)
    assert [row.index for row in model.rows] == [0, 1, 3, 4, 5]
    assert model.model[3].conv.in_channels == 12
    assert model.state_dict()["model.4.conv.weight"].shape == (8, 4, 1, 1)
    assert "model.5.anchors" in model.state_dict()
    seen = []
    model.model[2].register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[1])
    )
    assert [tuple(y.shape) for y in model(torch.zeros(2, 3, 32, 32))] == [
        (2, 2, 16, 16, 7),
        (2, 2, 8, 8, 7),
    ]
    assert seen == [12]


def test_nc_and_anchors_win_over_the_yaml() -> None:
    model = build_model("yolov5n", nc=7)
    assert (model.nc, model.head.no, model.cfg["nc"], len(model.names)) == (7, 12, 7, 7)


def test_the_callers_dict_is_not_changed() -> None:
    cfg = tiny()
    model = build_model(cfg, nc=5)
    model.cfg["backbone"].clear()
    assert cfg == tiny()


def test_activation_of_the_whole_model_and_of_a_row(tmp_path: Path) -> None:
    cfg = with_row("backbone", 2, [-1, 1, "Conv", [16, 3, 2, None, 1, "nn.ReLU()"]])
    save_yaml(cfg | {"activation": "nn.LeakyReLU(0.2)"}, tmp_path / "x.yaml")
    model = build_model(tmp_path / "x.yaml")
    assert model.model[0].act.negative_slope == 0.2
    assert isinstance(model.model[2].act, nn.ReLU)


def test_same_seed_same_model() -> None:
    torch.manual_seed(3)
    first = build_model(tiny())
    torch.manual_seed(3)
    second = build_model(tiny())
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_building_leaves_statistics_fresh() -> None:
    norms = [m for m in build_model("yolov5n", nc=1).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(
        m.training and m.num_batches_tracked == 0 and m.running_mean.abs().max() == 0 for m in norms
    )


def test_the_error_names_file_and_row_and_suggests(tmp_path: Path) -> None:
    cfg = with_row("backbone", 2, [-1, 1, "Covn", [64]])
    path = tmp_path / "x.yaml"
    save_yaml(cfg, path)
    with pytest.raises(UserError) as caught:
        build_model(path)
    assert str(caught.value).startswith(
        f"{path}: backbone row 2 [-1, 1, Covn, [64]]: unknown block 'Covn'; did you mean 'Conv'?"
    )


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (tiny() | {"bakbone": []}, r"unknown key 'bakbone'; did you mean 'backbone'\?"),
        ({k: v for k, v in tiny().items() if k != "head"}, "'head' is missing"),
        (tiny(nc=0), "nc: 0 is not an integer above 0"),
        (tiny(nc="two"), "nc: 'two' is not an integer above 0"),
        (tiny(width_multiple=-1), "width_multiple: -1 is not a number above 0"),
        (tiny(anchors=[[1, 2, 3], [1, 2, 3]]), "same even number"),
        (tiny(anchors=[[1, 2], [1, 2, 3, 4]]), "same even number"),
        (tiny(anchors=[[1, 0], [1, 2]]), "above 0"),
        (tiny(anchors="all"), "anchors: expected"),
        (tiny(backbone={}), "backbone: expected a list of rows"),
        (tiny(head=[]), "the last row must be a detection head"),
        (
            with_row("backbone", 1, [-1, 1, "Conv"]),
            r"backbone row 1 \[-1, 1, Conv\]: expected \[from",
        ),
        (with_row("backbone", 1, [-1, 0, "Conv", [8]]), "repeats is 0"),
        (with_row("backbone", 1, [-1, 1, 5, [8]]), "the block is 5"),
        (with_row("backbone", 1, [-1, 1, "Conv", 8]), "args is 8"),
        (with_row("backbone", 1, [1, 1, "Conv", [8]]), "from: 1 is no row above this one"),
        (with_row("backbone", 1, [-3, 1, "Conv", [8]]), "from: -3 is no row above this one"),
        (with_row("backbone", 1, [True, 1, "Conv", [8]]), "from: True is no row above this one"),
        (
            with_row("backbone", 1, ["stme", 1, "Conv", [8]]),
            r"no row above has the tag 'stme'; did you mean 'stem'\?",
        ),
        (with_row("backbone", 1, [[], 1, "Conv", [8]]), "from: names no input"),
        (with_row("backbone", 1, [-1, 1, "Conv", [8], "stem"]), "the tag 'stem' is taken"),
        (with_row("backbone", 1, [-1, 1, "Conv", []]), r"do not fit Conv\(c2, k"),
        (with_row("backbone", 1, [-1, 1, "Conv", {"c2": 8, "kernel": 3}]), "kernel"),
        (with_row("backbone", 1, [-1, 1, "Conv", ["wide"]]), "cannot be built"),
        (
            with_row("backbone", 1, [-1, 1, "Conv", [10**9]]),
            "1000000000 channels; expected 1 to 8192",
        ),
        (with_row("backbone", 1, [-1, 10**9, "MP", []]), "repeats is 1000000000"),
        (with_row("backbone", 1, [[-1, -1], 1, "Conv", [8]]), "takes one input, 'from' gives 2"),
        (
            with_row("head", 0, [[0, 2], 1, "Concat", [1]]),
            r"head row 0 \[\[0, 2\], 1, Concat, \[1\]\]: this block cannot be built",
        ),
        (
            with_row("backbone", 1, [-1, 1, "Conv", [8, 1, 1, None, 1, "nn.SiLUU()"]]),
            "unknown activation 'SiLUU'",
        ),
        (
            with_row("backbone", 1, [-1, 1, "__import__('os').system('touch hacked')", []]),
            "unknown block",
        ),
        (with_row("backbone", 1, [-1, 1, "torch.hub.load", ["x"]]), "unknown block"),
    ],
)
def test_wrong_yamls_are_one_clear_line(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(cfg)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model")


def test_an_unknown_model_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'yolov7-tiny'"):
        build_model("yolov7-tinny")


@pytest.mark.parametrize("name", list(OTHER_HEADS))
def test_heads_that_are_not_built_are_not_taken_for_misspelt(name: str) -> None:
    rows = [[-1, 1, "Conv", [8, 3, 2]]]
    cfg = {"nc": 2, "anchors": 3, "backbone": rows, "head": [[[0], 1, name, ["nc", "anchors"]]]}
    with pytest.raises(UserError, match=f"{name} is not built here") as error:
        build_model(cfg)
    assert "did you mean" not in str(error.value)

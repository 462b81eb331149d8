"""DecoupledHead: order of the outputs, start biases, folded implicit vectors, its cut."""

import math
from pathlib import Path
from typing import cast

import pytest
import torch

from models.heads.decoupled import Branches, DecoupledHead, Prediction
from tests.custom_toys import check_cut, check_fuse, check_gradients, skipped_layers, toy_model
from tests.prune_toys import randomised

ANCHORS = [[10, 13, 16, 30], [30, 61, 62, 45]]


def head() -> DecoupledHead:
    torch.manual_seed(0)
    return DecoupledHead((8, 16), (8.0, 16.0), 3, ANCHORS)


def test_each_anchor_gets_its_box_objectness_and_classes() -> None:
    block = head()
    x = [torch.randn(1, 8, 4, 4), torch.randn(1, 16, 2, 2)]
    maps = block(x)
    assert [tuple(m.shape) for m in maps] == [(1, 2, 4, 4, 8), (1, 2, 2, 2, 8)]
    level = cast(Branches, block.eval().m[1])
    y = level.stem(x[1])
    boxes, objects, classes = (
        level.box(level.box_conv(y)),
        level.obj(level.box_conv(y)),
        level.cls(level.cls_conv(y)),
    )
    _, maps = block(x)
    for anchor in range(2):
        assert torch.equal(
            maps[1][0, anchor, ..., :4], boxes[0, 4 * anchor : 4 * anchor + 4].permute(1, 2, 0)
        )
        assert torch.equal(maps[1][0, anchor, ..., 4], objects[0, anchor])
        assert torch.equal(
            maps[1][0, anchor, ..., 5:], classes[0, 3 * anchor : 3 * anchor + 3].permute(1, 2, 0)
        )


def test_parameters_of_a_level() -> None:
    c, na, nc = 16, 2, 3
    level = Branches(c, na, nc)
    predictions = (c + 1) * na * (nc + 5)
    assert sum(
        p.numel() for p in level.parameters()
    ) == 19 * c * c + 6 * c + predictions + 3 * c + na * (nc + 5)
    assert (
        sum(p.numel() for p in Branches(c, na, nc, implicit=False).parameters())
        == 19 * c * c + 6 * c + predictions
    )


def test_predictions_start_from_expected_frequencies() -> None:
    block = head()
    before = [cast(Branches, level).obj.bias.clone() for level in block.m]
    block.initialise_bias(torch.tensor([1.0, 1.0, 2.0]))
    for level, stride, old in zip(block.m, (8, 16), before, strict=True):
        assert torch.allclose(
            cast(Branches, level).obj.bias - old, torch.tensor(math.log(8 / (640 / stride) ** 2))
        )


def test_class_counts_reach_every_anchor() -> None:
    block = head()
    level = cast(Branches, block.m[0])
    before = level.cls.bias.clone()
    block.initialise_bias(torch.tensor([1.0, 1.0, 2.0]))
    assert torch.allclose(level.cls.bias - before, torch.tensor([0.25, 0.25, 0.5]).log().repeat(2))


@pytest.mark.parametrize("implicit", [True, False])
def test_a_prediction_folds_to_its_convolution(implicit: bool) -> None:
    torch.manual_seed(0)
    block = randomised(Prediction(6, 4, implicit)).eval()
    folded = cast(Prediction, block).fuse()
    x = torch.randn(2, 6, 3, 3)
    assert type(folded) is torch.nn.Conv2d
    assert torch.allclose(folded(x), block(x), atol=1e-5)


def test_pruning(tmp_path: Path) -> None:
    model = toy_model([[-1, 1, "Conv", [24, 3, 2]]], [1, 2], "DecoupledHead")
    check_gradients(model)
    check_fuse(model)
    groups, skipped, _ = check_cut(model, tmp_path)
    assert skipped_layers(skipped) == {
        f"model.3.m.{i}.{x}.conv" for i in (0, 1) for x in ("cls", "box", "obj")
    }
    assert {g.name for g in groups} >= {
        "model.0.conv",
        "model.1.conv",
        "model.2.conv",
        "model.3.m.0.stem.conv",
    }

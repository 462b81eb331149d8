"""TSCODE: its formula, folding, dead convolutions, its cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models import build_model
from models.heads.tscode import TSCODE, Decoupled, FinePrediction
from tests.custom_toys import check_cut, check_fuse, check_gradients, skipped_layers, toy_model
from tests.prune_toys import randomised
from utils.errors import UserError

ROWS: list[Any] = [[-1, 1, "Conv", [24, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]]


def test_a_level_by_its_formula() -> None:
    torch.manual_seed(0)
    level = randomised(Decoupled((4, 8, 6), 2, 3)).eval()
    assert isinstance(level, Decoupled)
    fine, own, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4), torch.randn(1, 6, 2, 2)
    y = level([fine, own, coarse]).view(1, 2, 8, 4, 4)

    def up(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    middle = level.own(own)
    boxes = level.places(
        level.detail(level.from_finer(fine) + level.own_up(up(middle)))
        + middle
        + level.from_coarser(up(coarse))
    )
    logits = level.cls.conv(level.cls.add(level.semantic(torch.cat((level.down(own), coarse), 1))))
    for anchor in range(2):
        assert torch.allclose(
            y[:, anchor, :4], level.box(boxes)[:, 4 * anchor : 4 * anchor + 4], atol=1e-5
        )
        assert torch.allclose(
            y[:, anchor, 4:5], level.obj(boxes)[:, anchor : anchor + 1], atol=1e-5
        )
        for c in range(3):
            number = 3 * anchor + c
            factor = level.cls.multiply.implicit[0, number, 0, 0]
            for row in (0, 1):
                for column in (0, 1):
                    expected = logits[0, 4 * number + 2 * row + column] * factor
                    assert torch.allclose(
                        y[0, anchor, 5 + c, row::2, column::2], expected, atol=1e-5
                    )


def test_a_fine_prediction_folds() -> None:
    torch.manual_seed(0)
    block = randomised(FinePrediction(6, 3)).eval()
    x = torch.randn(2, 6, 3, 3)
    assert isinstance(block, FinePrediction)
    assert torch.allclose(block.fuse()(x), block(x), atol=1e-5)


def test_dead_convolutions_only_count() -> None:
    channels, strides, anchors = (8, 16, 8), (4.0, 8.0, 16.0), [[10, 13]]
    plain, counting = (
        TSCODE(channels, strides, 2, anchors),
        TSCODE(channels, strides, 2, anchors, dead_convs=True),
    )
    more = sum(p.numel() for p in counting.parameters()) - sum(
        p.numel() for p in plain.parameters()
    )
    assert more == 16 * 16 + 2 * 16
    counting.load_state_dict(plain.state_dict(), strict=False)
    x = [
        torch.randn(1, c, 32 // int(s), 32 // int(s))
        for c, s in zip(channels, strides, strict=True)
    ]
    assert torch.equal(plain.eval()(x)[0], counting.eval()(x)[0])
    assert plain.stride.tolist() == [8.0]


def test_class_counts_reach_all_four_cells() -> None:
    head = TSCODE((8, 16, 8), (4.0, 8.0, 16.0), 2, [[10, 13, 16, 30]])
    level = head.m[0]
    assert isinstance(level, Decoupled)
    before = level.cls.bias.clone()
    head.initialise_bias(torch.tensor([1.0, 3.0]))
    expected = torch.tensor([0.25] * 4 + [0.75] * 4).log().repeat(2)
    assert torch.allclose(level.cls.bias - before, expected)
    assert F.pixel_shuffle(torch.arange(8.0).view(1, 8, 1, 1), 2)[0, 1].flatten().tolist() == [
        4,
        5,
        6,
        7,
    ]


def config() -> dict[str, Any]:
    """The toy model with levels between the first and the last input."""
    cfg = toy_model(ROWS, [2]).cfg
    return cfg | {
        "anchors": [[10, 13, 16, 30]],
        "head": [[[1, 2, 3], 1, "TSCODE", ["nc", "anchors"]]],
    }


def test_pruning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_model(config())
    randomised(net)
    check_gradients(net)
    check_fuse(net)
    _, skipped, _ = check_cut(net, tmp_path)
    assert skipped_layers(skipped) == {f"model.4.m.0.{x}.conv" for x in ("cls", "box", "obj")}


def test_maps_that_are_no_neighbours_are_told() -> None:
    with pytest.raises(UserError, match="half the size"):
        build_model(config() | {"head": [[[1, 3], 1, "TSCODE", ["nc", "anchors"]]]})

"""Anchor matching and the OTA choice on cases worked out by hand."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import box_iou

from utils.assigners import Matches, choose_ota, match_anchors, pairwise_iou

GRIDS = torch.tensor([[10.0, 10.0]])


def cells_of(x, y, w=2.0, h=2.0, anchors=((2.0, 2.0),), grids=GRIDS, anchor_t=4.0):
    """Cells (column, row) trained by one target given in units of a 10 x 10 grid."""
    target = torch.tensor([[0, 0, x / 10, y / 10, w / 10, h / 10]])
    return [
        tuple(cell)
        for cell in match_anchors(target, torch.tensor([anchors]), grids, anchor_t).cell.tolist()
    ]


@pytest.mark.parametrize(
    ("x", "y", "cells"),
    [
        (4.25, 4.25, [(4, 4), (3, 4), (4, 3)]),  # left, up
        (4.75, 4.75, [(4, 4), (5, 4), (4, 5)]),  # right, down
        (4.25, 4.75, [(4, 4), (3, 4), (4, 5)]),
        (4.5, 4.5, [(4, 4)]),  # the middle is near to none
        (0.25, 9.75, [(0, 9)]),  # no cell beyond the edge
        (0.75, 9.25, [(0, 9), (0, 8), (1, 9)]),
    ],
)
def test_a_target_trains_its_cell_and_the_nearest_neighbours(x, y, cells):
    assert cells_of(x, y) == cells


@pytest.mark.parametrize(("x", "cell"), [(10.0, 9), (0.0, 0), (-1.2, 0), (11.2, 9)])
def test_a_centre_on_or_beyond_the_edge_stays_in_the_grid(x, cell):
    assert (cell, 4) in cells_of(x, 4.5)
    assert all(0 <= column < 10 for column, _ in cells_of(x, 4.5))


@pytest.mark.parametrize(
    ("w", "h", "fits"),
    [
        (2, 2, True),
        (7.9, 2, True),
        (8, 2, False),
        (2, 0.51, True),
        (2, 0.5, False),
        (2, 8.5, False),
        (0, 2, False),
    ],
)
def test_an_anchor_fits_below_the_ratio_on_both_sides(w, h, fits):
    assert bool(cells_of(4.5, 4.5, w, h, anchor_t=4.0)) == fits


def test_matches_come_in_the_order_level_offset_anchor_target():
    targets = torch.tensor([[0, 0, 0.425, 0.45, 0.2, 0.2], [1, 0, 0.425, 0.45, 0.3, 0.2]])
    anchors = torch.tensor([[[2.0, 2.0], [3.0, 3.0]], [[1.0, 1.0], [50.0, 50.0]]])
    matches = match_anchors(targets, anchors, torch.tensor([[10.0, 10.0], [5.0, 5.0]]), 4.0)
    found = torch.column_stack(
        (matches.level, matches.anchor, matches.cell, matches.target)
    ).tolist()
    assert found == [
        *([0, anchor, 4, 4, target] for anchor in (0, 1) for target in (0, 1)),
        *(
            [0, anchor, 3, 4, target] for anchor in (0, 1) for target in (0, 1)
        ),  # the left neighbour
        *([1, 0, 2, 2, target] for target in (0, 1)),  # 2.125, 2.25 on the coarse grid
        *([1, 0, 1, 2, target] for target in (0, 1)),
        *([1, 0, 2, 1, target] for target in (0, 1)),
    ]


def test_columns_and_rows_may_differ():
    assert cells_of(5.125, 5.0, grids=torch.tensor([[20.0, 5.0]])) == [(10, 2), (9, 2)]


def test_a_centre_on_a_border_has_its_own_cell_twice():
    """As in YOLOv5: it is near to both sides, and half a cell to the right of the border is still
    its own cell.
    """
    assert cells_of(4.0, 4.5) == [(4, 4), (3, 4), (4, 4)]


def test_pairwise_iou_equals_torchvision():
    generator = torch.Generator().manual_seed(0)
    low, size = torch.rand(2, 3, 12, 2, generator=generator).unbind(0)
    boxes = torch.cat((low, low + size), -1)
    ours = pairwise_iou(boxes[:, :5], boxes[:, 5:])
    assert_close(ours, torch.stack([box_iou(image[:5], image[5:]) for image in boxes]))
    assert (ours == 0).any()
    assert (ours > 0.3).any()


def choose(boxes, owners, corners, images=1, target_images=None, cls=None, classes=None, obj=0.0):
    """Run the choice on boxes that are all equally sure unless `cls` says otherwise; returns
    {candidate: target}.
    """
    count = len(boxes)
    number = torch.arange(count)
    zeros = torch.zeros(count, dtype=torch.long)
    candidates = Matches(
        zeros, number, torch.zeros(count, 2, dtype=torch.long), torch.tensor(owners)
    )
    targets = torch.zeros(len(corners), 6)
    targets[:, 0] = torch.tensor(target_images or [0] * len(corners))
    targets[:, 1] = torch.tensor(classes or [0] * len(corners))
    cls = torch.zeros(count, 1) if cls is None else torch.tensor(cls)
    boxes, corners = torch.tensor(boxes), torch.tensor(corners)
    chosen = choose_ota(candidates, boxes, torch.full((count,), obj), cls, targets, corners, images)
    return dict(zip(chosen.anchor.tolist(), chosen.target.tolist(), strict=True))


def box(x, width=1.0):
    return [x, 0.0, x + width, 1.0]


def test_k_is_the_sum_of_the_overlaps_rounded_down():
    # IoUs with the target 0..1: 1, 1/3, 1/3 -> 1.67 -> one; with another 1 -> 2.67 -> two
    assert choose([box(0.5), box(0.0), box(-0.5)], [0, 0, 0], [box(0.0)]) == {1: 0}
    assert choose([box(0.5), box(0.0), box(-0.5), box(0.0)], [0, 0, 0, 0], [box(0.0)]) == {
        1: 0,
        3: 0,
    }


def test_a_target_without_any_overlap_still_takes_the_one_that_costs_least():
    sure = [[0.0], [3.0], [1.0]]
    assert choose([box(5.0), box(6.0), box(7.0)], [0, 0, 0], [box(0.0)], cls=sure) == {1: 0}


def test_only_the_ten_best_overlaps_count():
    assert len(choose([box(0.0)] * 14, [0] * 14, [box(0.0)])) == 10


def test_of_equal_costs_the_earlier_candidate_is_taken():
    assert choose([box(0.5), box(0.5), box(0.5), box(0.5)], [0] * 4, [box(0.0)]) == {0: 0}


def test_a_prediction_taken_twice_goes_to_the_target_it_costs_least():
    # both targets overlap candidate 0 best, the second one more; nothing is left for the first
    assert choose([box(0.2), box(3.0)], [0, 1], [box(0.0), box(0.1)]) == {0: 1}


def test_the_class_decides_between_equal_boxes():
    logits = [[4.0, -4.0], [-4.0, 4.0]]
    assert choose([box(0.0, 0.7), box(0.0, 0.7)], [0, 0], [box(0.0)], cls=logits, classes=[1]) == {
        1: 0
    }


def test_images_keep_to_themselves():
    # image 0 has two targets, image 1 none, image 2 one whose perfect box lies among image 0's
    # candidates: it cannot have that
    boxes = [box(0.0), box(9.0), box(5.0), box(5.9)]
    corners = [box(0.0), box(5.2), box(9.0)]
    assert choose(boxes, [0, 0, 2, 1], corners, images=3, target_images=[0, 0, 2]) == {
        0: 0,
        2: 2,
        3: 1,
    }


def test_what_fills_up_the_smaller_image_is_never_chosen_nor_counted():
    # image 1 has more of both, and its last box and its last target would be perfect for image 0
    corners = [box(0.0), box(0.1), box(20.0), box(30.0), box(0.2)]
    boxes = [box(0.2), box(7.0), box(20.0), box(30.0), box(31.0), box(32.0), box(0.0)]
    chosen = choose(boxes, [0, 1, 2, 3, 3, 3, 4], corners, images=2, target_images=[0, 0, 1, 1, 1])
    assert chosen == {0: 1, 2: 2, 3: 3, 6: 4}


def test_what_fills_up_the_smaller_image_takes_no_place():
    # nothing overlaps image 0's target, and the surer last box of image 1 would cost it less than
    # its own candidate
    boxes, corners = [box(5.0), box(20.0), box(31.0)], [box(0.0), box(20.0)]
    assert choose(
        boxes, [0, 1, 1], corners, images=2, target_images=[0, 1], cls=[[0.0], [0.0], [3.0]]
    ) == {0: 0, 1: 1}


def test_probabilities_that_round_to_one_can_still_be_compared():
    logits = [[90.0, -90.0], [-90.0, 90.0]]
    assert choose([box(0.0), box(0.0)], [0, 0], [box(0.5)], cls=logits, classes=[1], obj=90.0) == {
        1: 0
    }


def test_no_candidate_no_match():
    assert (
        choose(torch.zeros(0, 4).tolist(), torch.zeros(0, dtype=torch.long).tolist(), [box(0.0)])
        == {}
    )

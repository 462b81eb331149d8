"""Logit losses: hand-computed cases, a slow reference that goes anchor by anchor, and the
properties each must have.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from distill import LOGIT_LOSSES, LogitSetup
from distill.align_soft_target import soft_target_loss
from models.heads.detect import Detect
from tests.conftest import ROOT
from utils.config import Hyp
from utils.errors import UserError
from utils.losses import build_loss
from utils.registry import registered_names

NAMES = ["ast", "l1", "l2"]
ANCHORS = torch.tensor(
    [
        [[1.25, 1.625], [2.0, 3.75]],
        [[1.875, 3.8125], [3.875, 2.8125]],
        [[3.625, 2.8125], [4.875, 6.1875]],
    ]
)
GRIDS = ((4, 3), (2, 2), (1, 1))


def setup(nc=3, box=0.05, obj=0.7, cls=0.3, anchors=ANCHORS, balance=(4.0, 1.0, 0.4)):
    return LogitSetup(anchors.clone(), nc, box, obj, cls, balance[: len(anchors)])


def made(name, dtype=torch.float64, **options):
    return LOGIT_LOSSES[name](setup(**options)).to(dtype)


def maps(nc=3, images=2, seed=0, dtype=torch.float64, grids=GRIDS):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, 2, h, w, 5 + nc, generator=generator, dtype=torch.float64)
        .mul(2)
        .to(dtype)
        for h, w in grids
    ]


def teacher(nc=3, images=2, seed=1, dtype=torch.float64):
    return maps(nc, images, seed, dtype)


def one_cell(*raw):
    """One level, image, anchor and cell."""
    return [torch.tensor(raw, dtype=torch.float64).view(1, 1, 1, 1, -1)]


ONE = ANCHORS[:1, :1]


def test_names_are_read_without_importing():
    assert registered_names(ROOT / "distill", "LOGIT_LOSSES") == NAMES
    assert set(NAMES) <= set(LOGIT_LOSSES.names())
    with pytest.raises(UserError, match="did you mean 'ast'"):
        LOGIT_LOSSES["asd"]


def test_setup_of_a_head_has_the_detection_losses_gains_and_balance():
    hyp = Hyp(box=0.04, obj=0.9, cls=0.2).scaled(3, 5, 320)
    strides = [8.0, 16.0, 32.0]
    head = Detect([8] * 3, strides, 5, ANCHORS.shape[1])
    head.set_anchors(ANCHORS * torch.tensor(strides).view(-1, 1, 1))
    found = LogitSetup.of(head, hyp)
    assert (found.nc, found.box, found.obj, found.cls) == (5, hyp.box, hyp.obj, hyp.cls)
    assert torch.equal(
        torch.tensor(found.balance), build_loss(SimpleNamespace(head=head), hyp).balance
    )
    head.anchors.zero_()
    assert torch.equal(found.anchors, ANCHORS)
    assert not LOGIT_LOSSES["ast"](found).state_dict() and not list(
        LOGIT_LOSSES["l1"](found).parameters()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nc", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_zero_where_student_is_teacher_and_positive_elsewhere(name, nc, dtype):
    loss, t = made(name, dtype, nc=nc), teacher(nc, dtype=dtype)
    same = [x.clone().requires_grad_() for x in t]
    value = loss(same, t)
    assert value.shape == () and value.dtype == dtype and abs(value) < 1e-6
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(value, same)) or name == "l1"
    assert loss(maps(nc, dtype=dtype), t) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_twice_has_the_value_of_the_batch(name):
    loss, s, t = made(name), maps(), teacher()
    assert sum(x[..., 4].sigmoid().sum() for x in t) > 1
    twice = [[torch.cat((x, x)) for x in side] for side in (s, t)]
    assert_close(loss(*twice), loss(s, t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("nc", [1, 3])
def test_gradients_are_those_of_finite_differences(name, nc):
    loss, t = made(name, nc=nc), teacher(nc, images=1)
    assert torch.autograd.gradcheck(
        lambda *s: loss(s, t), [x.requires_grad_() for x in maps(nc, images=1)]
    )


@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_gains_times_the_terms_and_no_gradient_reaches_the_teacher(name):
    s, t = [x.requires_grad_() for x in maps()], [x.requires_grad_() for x in teacher()]
    terms = [made(name, box=b, obj=o, cls=c)(s, t) for b, o, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all(term > 0 for term in terms)
    total = made(name)(s, t)
    assert_close(total, 0.05 * terms[0] + 0.7 * terms[1] + 0.3 * terms[2], rtol=1e-12, atol=0)
    total.backward()
    assert all(x.grad is None for x in t) and all(x.grad.abs().sum() > 0 for x in s)


@pytest.mark.parametrize("name", NAMES)
def test_one_class_has_no_class_term(name):
    t = teacher(1)
    s = [x.requires_grad_() for x in maps(1)]
    gradients = torch.autograd.grad(made(name, nc=1)(s, t), s)
    assert all(g[..., 5].abs().max() == 0 and g[..., 4].abs().min() > 0 for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32_even_under_autocast(name, dtype):
    s, t = (
        [x.clamp(-2, 2).mul(5e3).to(dtype) for x in side] for side in (maps(), teacher())
    )  # up to 1e4
    s = [x.requires_grad_() for x in s]
    loss = made(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(s, t)
    value.backward()
    assert value.dtype == torch.float32 and all(x.grad.isfinite().all() for x in s)
    assert_close(
        value.double(), loss([x.double() for x in s], [x.double() for x in t]), rtol=1e-4, atol=0
    )


def test_maps_of_other_forms_are_refused():
    with pytest.raises(AssertionError, match="one form"):
        made("l1")(maps(), teacher(nc=2))


# l1, l2


def test_raw_outputs_by_hand():
    s, t = (
        one_cell(1, 2, 3, 4, 1, 5, 0),
        one_cell(0, 0, 0, 0, math.log(3), 2, 2),
    )  # teacher's objectness .75
    options = {"nc": 2, "anchors": ONE, "box": 1, "obj": 0, "cls": 0}
    assert_close(made("l1", **options)(s, t).item(), 0.75 * (1 + 2 + 3 + 4) / 4)
    assert_close(made("l2", **options)(s, t).item(), 0.75 * (1 + 4 + 9 + 16) / 4)
    options |= {"box": 0, "obj": 2}
    assert_close(made("l1", **options)(s, t).item(), 2 * 0.75 * (math.log(3) - 1))
    assert_close(made("l2", **options)(s, t).item(), 2 * 0.75 * (math.log(3) - 1) ** 2)
    options |= {"obj": 0, "cls": 1}
    assert_close(made("l1", **options)(s, t).item(), 0.75 * (3 + 2) / 2)
    assert_close(made("l2", **options)(s, t).item(), 0.75 * (9 + 4) / 2)


def test_raw_outputs_sum_the_means_of_the_levels():
    t = teacher()
    moved = [x + d for x, d in zip(t, (1.0, 2.0, 4.0), strict=True)]
    weights = [x[..., 4].sigmoid().mean() for x in t]
    for name, powers in (("l1", (1, 2, 4)), ("l2", (1, 4, 16))):
        expected = (0.05 + 0.7 + 0.3) * sum(w * p for w, p in zip(weights, powers, strict=True))
        assert_close(made(name)(moved, t), expected, rtol=1e-9, atol=0)


def test_raw_outputs_are_silent_where_the_teacher_sees_nothing():
    t = teacher()
    for x in t:
        x[..., 4] = -40.0  # the student's own objectness does not matter
    s = [x.requires_grad_() for x in maps()]
    assert all(
        g.abs().max() < 1e-15
        for name in ("l1", "l2")
        for g in torch.autograd.grad(made(name)(s, t), s)
    )


# ast


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def reference_ciou(a, b):
    """Of two boxes (x, y, w, h), with the arithmetic of Zheng et al. 2020."""
    sides = []
    for axis in (0, 1):
        low_a, high_a, low_b, high_b = (
            x[axis] + k * x[axis + 2] / 2 for x in (a, b) for k in (-1, 1)
        )
        inner = min(high_a, high_b) - max(low_a, low_b)
        sides.append((inner if inner > 0 else 0 * inner, max(high_a, high_b) - min(low_a, low_b)))
    overlap = sides[0][0] * sides[1][0]
    iou = overlap / (a[2] * a[3] + b[2] * b[3] - overlap)
    distance = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (sides[0][1] ** 2 + sides[1][1] ** 2)
    v = 4 / math.pi**2 * (torch.atan(b[2] / b[3]) - torch.atan(a[2] / a[3])) ** 2
    alpha = (v / (1 - iou + v)).detach()
    return iou - distance - alpha * v


def reference_soft(s, t):
    p, q = sigmoid(s), sigmoid(t)
    return -(q * torch.log(p) + (1 - q) * torch.log(1 - p)) * abs(q - p)


def reference_ast(student, teacher, given):
    box, obj, cls, objects = 0.0, 0.0, 0.0, 0.0
    for s, t, anchors, balance in zip(
        student, teacher, given.anchors.double(), given.balance, strict=True
    ):
        images, count, height, width, _ = s.shape
        cells = [
            (i, a, y, x)
            for i in range(images)
            for a in range(count)
            for y in range(height)
            for x in range(width)
        ]
        level_obj = 0.0
        for cell in cells:
            p, q, anchor = s[cell], t[cell], anchors[cell[1]]
            g, scores = sigmoid(q[4]), []
            for raw in (p, q):
                o = sigmoid(raw[4])
                scores.append([o * sigmoid(z) for z in raw[5:]] if given.nc > 1 else [o])
            gap = max(abs(a - b).detach() for a, b in zip(*scores, strict=True))
            boxes = [
                [2 * sigmoid(r[0]) - 0.5 + cell[3], 2 * sigmoid(r[1]) - 0.5 + cell[2]]
                + [(2 * sigmoid(r[2 + k])) ** 2 * anchor[k] for k in (0, 1)]
                for r in (p, q)
            ]
            box = box + gap * (1 - reference_ciou(*boxes))
            level_obj = level_obj + reference_soft(p[4], q[4])
            if given.nc > 1:
                cls = (
                    cls
                    + g
                    * sum(reference_soft(a, b) for a, b in zip(p[5:], q[5:], strict=True))
                    / given.nc
                )
            objects = objects + g
        obj = obj + balance * level_obj / len(cells)
    return (
        given.box * box / max(objects, 1.0) + given.obj * obj + given.cls * cls / max(objects, 1.0)
    )


@pytest.mark.parametrize(
    ("nc", "shift"), [(1, 0.0), (3, 0.0), (3, -8.0)]
)  # -8: the teacher's objectness adds up to less than 1
def test_ast_equals_the_slow_reference(nc, shift):
    s, t = [x.requires_grad_() for x in maps(nc)], teacher(nc)
    for x in t:
        x[..., 4] += shift
    assert (sum(x[..., 4].sigmoid().sum() for x in t) > 1) == (shift == 0)
    loss, expected = made("ast", nc=nc)(s, t), reference_ast(s, t, setup(nc=nc))
    assert_close(loss, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(loss, s), torch.autograd.grad(expected, s), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_soft_target_by_hand():
    s, t = (
        torch.zeros(1, dtype=torch.float64, requires_grad=True),
        torch.tensor([math.log(3)], dtype=torch.float64),
    )
    value = soft_target_loss(s, t)
    assert_close(value.item(), math.log(2) / 4, rtol=1e-12, atol=0)  # p_s .5, p_t .75
    # with the gap held constant it would be -.0625
    assert_close(torch.autograd.grad(value, s)[0].item(), -0.235786795139986, rtol=1e-12, atol=0)


def test_soft_target_pulls_towards_the_teacher_and_grows_with_the_distance():
    t = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None].expand(7, 25)
    distance = torch.linspace(0.25, 6, 24, dtype=torch.float64)
    for side in (-1, 1):
        s = (t[:, 1:] + side * distance).requires_grad_()
        value = soft_target_loss(s, t[:, 1:])
        assert (value.diff(dim=1) > 0).all()
        assert (torch.autograd.grad(value.sum(), s)[0].sign() == side).all()
    a, b = torch.tensor(0.0), torch.tensor(2.0)
    assert (
        abs(soft_target_loss(a, b) - soft_target_loss(b, a)) > 0.1
    )  # the gap is symmetric, cross-entropy is not


def test_ast_box_is_decoded_in_grid_units():
    # student: objectness 0, and one cell to the right of the teacher, which is sure. Boxes 2 x 2:
    # IoU 2 / 6, distance 1 / 13
    s, t = one_cell(40, 0, 0, 0, -40, 0), one_cell(0, 0, 0, 0, 40, 0)
    loss = made("ast", nc=1, anchors=torch.tensor([[[2.0, 2.0]]]), box=1, obj=0)
    assert_close(loss(s, t).item(), 1 - 1 / 3 + 1 / 13, rtol=1e-6, atol=0)


def test_ast_box_counts_where_scores_differ_only():
    box = {"nc": 2, "anchors": ONE, "box": 1, "obj": 0, "cls": 0}
    far, near = (3.0, 3.0, 2.0, -2.0), (0.0, 0.0, 0.0, 0.0)
    agree = made("ast", **box)(one_cell(*far, 1, 1, -1), one_cell(*near, 1, 1, -1))
    background = made("ast", **box)(one_cell(*far, -12, 1, -1), one_cell(*near, -11, 1, -1))
    differ = made("ast", **box)(one_cell(*far, -3, 1, -1), one_cell(*near, 3, 1, -1))
    assert agree == 0 and background < 1e-4 and differ > 0.5


def test_ast_gap_is_a_constant_for_the_box():
    s, t = [x.requires_grad_() for x in maps()], teacher()
    gradients = torch.autograd.grad(made("ast", obj=0, cls=0)(s, t), s)
    assert all(g[..., 4:].abs().max() == 0 and g[..., :4].abs().max() > 0 for g in gradients)


def test_ast_follows_the_sigmoids_not_their_order():
    # one number added to all class logits: no softmax would feel it
    t = teacher()
    moved = [torch.cat((x[..., :5], x[..., 5:] + 2), -1) for x in t]
    assert made("ast", box=0, obj=0)(moved, t) > 0.02


def test_ast_of_extreme_logits_has_finite_gradients():
    for size in (1e2, 1e4):
        s = [(x.sign() * size).requires_grad_() for x in maps(dtype=torch.float32)]
        value = made("ast", torch.float32)(
            s, [x.sign() * size for x in teacher(dtype=torch.float32)]
        )
        assert value.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(value, s))


def test_neighbours_differ():
    s, t = maps(), teacher()
    values = [made(name)(s, t).item() for name in NAMES]
    assert min(abs(a - b) for a in values for b in values if a is not b) > 0.1
    # of raw outputs that are beyond doubt on both sides, ast sees no difference
    sure = [x.abs() + 40 for x in t]
    further = [x + 5 for x in sure]
    assert (
        made("ast")(further, sure) < 1e-12
        and made("l1")(further, sure) > 1
        and made("l2")(further, sure) > 5
    )

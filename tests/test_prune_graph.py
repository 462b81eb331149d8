import numpy as np
import pytest
import torch
from torch import nn

from models import build_model
from prune_methods import find_groups, run_preflight
from prune_methods.groups.graph import ignored_layers
from tests.prune_toys import Chain, Csp, Rep, toy, unit
from utils.errors import UserError


def members(model, name):
    """{(layer, kind): layer channel of group channel 0 ...} of the group that starts at `name`."""
    group = next(g for g in find_groups(model) if g.name == name)
    return {
        (m.name, m.kind): (m.layer_channels.tolist(), m.group_channels.tolist())
        for m in group.members
    }


def test_chain_has_two_groups_and_a_fixed_output():
    found, skipped = run_preflight(toy(Chain))
    assert [(g.name, g.size) for g in found] == [("stem.0", 8), ("mid.0", 6)]
    assert [(s.layer, s.reason) for s in skipped] == [("out", "makes the output of the model")]
    assert set(members(toy(Chain), "mid.0")) == {("mid.0", "out"), ("mid.1", "norm"), ("out", "in")}


def test_concatenation_and_residual_map_channels():
    model = toy(Csp)
    left = members(model, "left.0")
    own, both = list(range(12)), (list(range(12)), list(range(12)))
    assert left["inner.0", "out"] == left["inner.0", "in"] == left["join.0", "in"] == both
    right = members(model, "right.0")
    assert right["join.0", "in"] == ([12 + c for c in range(20)], list(range(20)))
    pooled = members(model, "join.0")["merge.0", "in"]
    assert sorted(zip(*pooled, strict=True)) == sorted(
        [(c, c) for c in range(28)] + [(28 + c, c) for c in range(28)]
    )
    wise = members(model, "merge.0")
    assert (
        wise["wise.0", "depthwise"] == (list(range(16)), list(range(16))) and ("out", "in") in wise
    )
    assert ("left.0", "out") in left and left["left.0", "out"][0] == own


def test_rep_couples_branches_identity_and_implicit():
    found, skipped = run_preflight(toy(Rep))
    assert [g.name for g in found] == ["stem.0"]  # the identity ties the branches to what comes in
    kinds = {(m.name, m.kind) for m in found[0].members}
    assert kinds >= {
        ("dense.0", "out"),
        ("dense.0", "in"),
        ("point.0", "out"),
        ("same", "norm"),
        ("implicit", "param"),
        ("out", "in"),
    }
    assert not any(name == "factor" for name, _ in kinds) and [s.layer for s in skipped] == ["out"]


def test_frozen_model_and_its_modes_stay_as_they_are():
    model = toy(Chain).requires_grad_(False).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert (
        len(find_groups(model)) == 2
    )  # frozen parameters would leave the library with an empty graph
    assert model.training and not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_ignore_keeps_outputs_but_not_inputs_whole():
    model = build_model("yolov5n", nc=2)
    found, skipped = run_preflight(model, ["6"])
    reasons = {s.layer: s.reason for s in skipped}
    assert reasons["model.6.cv3.conv"] == "ignored by the user"
    assert not any(
        m.name.startswith("model.6.") and m.kind == "out" for g in found for m in g.members
    )
    fifth = next(g for g in found if g.name == "model.5.conv")
    assert ("model.6.cv1.conv", "in") in {(m.name, m.kind) for m in fifth.members}
    tied = run_preflight(model, ["model.4.m.1.cv2"])[
        1
    ]  # ends in a residual: takes its partners with it
    assert {s.layer for s in tied} >= {
        "model.4.cv1.conv",
        "model.4.m.0.cv2.conv",
        "model.4.m.1.cv2.conv",
    }
    assert "coupled to" in {s.layer: s.reason for s in tied}["model.4.cv1.conv"]


def test_ignore_patterns():
    model = build_model("yolov5n", nc=2)
    assert "model.3.conv" in ignored_layers(
        model, ["3"]
    ) and "model.13.cv3.conv" not in ignored_layers(model, ["3"])
    assert {"model.2.cv3", "model.23.cv3"} <= ignored_layers(model, ["model.*.cv3"])
    with pytest.raises(UserError, match=r"no layer is called 'model\.99'"):
        ignored_layers(model, ["model.99"])


@pytest.mark.parametrize(("cfg", "number"), [("yolov5n", 50), ("yolov7-tiny", 55)])
def test_real_models_are_prunable_everywhere_but_in_the_predictions(cfg, number):
    model = build_model(cfg, nc=4)
    found, skipped = run_preflight(model)
    last = len(model.model) - 1
    assert len(found) == number
    assert [s.layer for s in skipped] == [f"model.{last}.m.{i}" for i in range(3)]
    grouped = {m.name for g in found for m in g.members if m.kind == "out"}
    convs = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert convs - grouped == {s.layer for s in skipped}
    read = {m.name for g in found for m in g.members if m.kind == "in"}
    assert {f"model.{last}.m.{i}" for i in range(3)} <= read


class Odd(nn.Module):
    """A grouped convolution, a group norm and an unused layer."""

    def __init__(self):
        super().__init__()
        self.a, self.grouped, self.b = unit(3, 8), unit(8, 8, 3, groups=4), unit(8, 8)
        self.norm, self.c, self.unused = nn.GroupNorm(2, 8), unit(8, 8), nn.Conv2d(8, 8, 1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.out(self.c(self.norm(self.b(self.grouped(self.a(x))))))


def test_what_cannot_be_cut_is_named_with_its_reason():
    found, skipped = run_preflight(Odd())
    reasons = {s.layer: s.reason for s in skipped}
    assert [(g.name, g.size) for g in found] == [
        ("b.0", 2),
        ("c.0", 8),
    ]  # a group norm loses whole groups
    assert "grouped convolution" in reasons["a.0"] and "grouped convolution" in reasons["grouped.0"]
    assert "b.0" not in reasons and "does not reach" in reasons["unused"]
    assert sum(len(np.unique(m.layer_channels)) for m in found[1].members if m.kind == "out") == 8


class Halves(nn.Module):
    """C2f's split, which the library cannot follow."""

    def __init__(self):
        super().__init__()
        self.stem, self.half, self.out = unit(3, 8), unit(4, 6), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        a, b = self.stem(x).split((4, 4), 1)
        return self.out(torch.cat((a, self.half(b)), 1))


def test_split_is_skipped_or_refused_in_one_line():
    try:
        found, skipped = run_preflight(Halves())
    except UserError as error:
        assert "cannot be built" in str(error) and "\n" not in str(error)
    else:
        assert "stem.0" not in {g.name for g in found} and "stem.0" in {s.layer for s in skipped}

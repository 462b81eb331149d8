import csv
import time
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import prune_methods.preflight.check as check
from models import build_model, load_model, save_model
from models.pruning_rules import detach_channels, tracing
from models.registry import BLOCKS
from prune_methods import PRUNERS, Prunable, Target, find_groups, run_preflight
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.preflight.deadline import Deadline, OutOfTime
from prune_methods.preflight.probe import TOLERANCE, largest_passing, probe, randomize_bn
from prune_methods.search.cost import Cost
from prune_methods.surgery.cut import cut, largest_difference
from prune_methods.surgery.verify import verify
from recipes.prune.preflight_report import (
    LayerFate,
    layer_fates,
    short_form,
    table,
    write_preflight,
)
from tests.preflight_toys import TOYS, Spatial, with_row
from tests.prune_toys import Chain, Csp, Rep, randomised, toy
from utils.errors import UserError
from utils.profiling import count_macs, macs_by_module


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """The toys are blocks while a test of this file runs, and not for the others."""
    for block in TOYS:
        monkeypatch.setitem(BLOCKS._items, block.__name__, block)


def detector(block: str, *args: object):
    torch.manual_seed(0)
    return build_model(with_row(block, *args))


def names_and_reasons(model, *ignore):
    found, skipped = run_preflight(model, ignore)
    return [g.name for g in found], {s.layer: s.reason for s in skipped}


AROUND = ["model.0.conv", "model.1.conv", "model.3.conv", "model.4.conv"]


def test_row_that_breaks_the_graph_stays_whole_with_what_is_tied_to_it():
    found, reasons = names_and_reasons(detector("Shuffle"))
    assert found == ["model.0.conv", "model.3.conv", "model.4.conv"]
    title = (
        "row 2 (Shuffle) cannot be traced (ZeroDivisionError: integer division or modulo by zero)"
    )
    assert reasons == {
        "model.1.conv": "coupled to model.2 (row that cannot be traced), which cannot be cut",
        "model.2.conv.conv": title,
        "model.2.wise.conv": title,
        "model.5.m.0": "makes the output of the model",
    }


def test_two_such_rows_and_a_residual_around_one_are_found():
    content = with_row("Shuffle")
    content["backbone"] += [[-1, 1, "Shuffle", []], [-1, 1, "Conv", [24, 1, 1]]]
    content["head"] = [
        [[-1, 3], 1, "Concat", [1]],
        [-1, 1, "Conv", [8, 1]],
        [[-1], 1, "Detect", ["nc", "anchors"]],
    ]
    torch.manual_seed(0)
    model = build_model(content)
    found, reasons = names_and_reasons(model)
    assert found == ["model.0.conv", "model.5.conv", "model.7.conv"]
    assert (
        "row 2 (Shuffle)" in reasons["model.2.conv.conv"]
        and "row 4 (Shuffle)" in reasons["model.4.conv.conv"]
    )
    assert "coupled to model.4" in reasons["model.3.conv"]
    exact = find_groups(model)
    plan = Prunable(model, exact).search(PRUNERS["lamp"](), Target(1.3))
    smaller = Prunable(model, exact).cut(plan.masks)
    verify(ChannelIndex(model, exact), plan.masks, plan.macs, smaller)
    concat = smaller.model[7].conv  # of what row 5 has left, and of the whole of row 3
    assert concat.in_channels == smaller.model[5].conv.out_channels + 24 < 48


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (
            "FixedGate",
            (
                "a cut copy does not run (RuntimeError: The size of tensor a (12) must match the"
                " size of tensor b (16)"
            ),
        ),
        ("Halves", "a cut copy does not run (RuntimeError: split_with_sizes"),
        ("Reversed", "a cut copy differs from one with these channels at zero by 0."),
    ],
)
def test_probe_finds_the_one_group_that_hides_a_coupling(block, reason):
    model = detector(block)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found, reasons = names_and_reasons(model)
    assert set(found) >= set(AROUND) and "model.2.conv.conv" not in found
    assert reasons["model.2.conv.conv"].startswith(reason)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and model.training
    exact = find_groups(model)
    plan = Prunable(model, exact).search(PRUNERS["lamp"](), Target(1.5))
    verify(
        ChannelIndex(model, exact), plan.masks, plan.macs, Prunable(model, exact).cut(plan.masks)
    )


@pytest.mark.parametrize("kind", [Chain, Csp, Rep])
def test_probe_passes_what_is_right_at_once(kind, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "prune_methods.preflight.probe.cut", lambda *words: calls.append(1) or cut(*words)
    )
    model = toy(kind)
    found = find_groups(model)
    assert calls == [1] and len(found) > 0
    whole = [g.size for g in probe(model, found)[0]]
    assert whole == [g.size for g in found]


def test_probe_stirs_a_copy_so_that_channels_differ():
    """Those of a new model (gamma 1, beta 0) are alike, and a wrong one would not show."""
    model = Chain()
    norm = randomize_bn(model).stem[1]
    assert (
        not norm.training
        and len(set(norm.weight.tolist())) == 8
        and (norm.weight >= 0.5).all()
        and (norm.bias != 0).all()
    )
    assert not torch.equal(norm.running_mean, torch.zeros(8)) and torch.equal(
        model.stem[1].weight, torch.ones(8)
    )


def test_largest_passing_is_right_and_asks_seldom():
    asked = []

    def failure(chosen):
        asked.append(list(chosen))
        return "odd" if set(chosen) & {3, 40} else "both" if {7, 8} <= set(chosen) else None

    passing, rejected = largest_passing(range(64), failure)
    assert passing == [i for i in range(64) if i not in (3, 8, 40)]
    assert rejected == [(3, "odd"), (8, "both"), (40, "odd")] and len(asked) < 40
    asked.clear()
    assert (
        largest_passing(range(64), failure=lambda c: asked.append(c)) == (list(range(64)), [])
        and len(asked) == 1
    )
    assert largest_passing([], failure) == ([], [])


def test_nothing_that_can_be_traced_is_one_line():
    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            raise RuntimeError("never\nruns")

    with pytest.raises(UserError, match=r"cannot be built \(RuntimeError: never runs\)"):
        run_preflight(Nothing())


def test_deadline_stops_an_attempt_and_leaves_time_for_the_next():
    deadline = Deadline(0.4)
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(OutOfTime), deadline.attempt():
            time.sleep(5)
        assert time.monotonic() - start < 0.3
    with deadline.attempt():
        pass
    assert not Deadline(9).over
    time.sleep(0.2)  # no alarm is left behind
    assert deadline.over


def test_slow_layer_and_slow_graph(monkeypatch):
    follow, build = check.trace, check.build_graph

    def slow_trace(graph, name, *rest):
        if name == "mid.0":
            time.sleep(5)
        return follow(graph, name, *rest)

    monkeypatch.setattr(check, "trace", slow_trace)
    found, skipped = run_preflight(toy(Chain), time_limit=0.6)
    assert [g.name for g in found] == ["stem.0"]
    assert {s.layer: s.reason for s in skipped}[
        "mid.0"
    ] == "not followed within the time limit of 0.6 s"

    def slow_build(model, opaque=()):
        if "mid" not in opaque:
            time.sleep(5)
        return build(model, opaque)

    monkeypatch.setattr(check, "build_graph", slow_build)
    found, skipped = run_preflight(toy(Chain), time_limit=2)
    assert {s.layer: s.reason for s in skipped}[
        "mid.0"
    ] == "row mid (Sequential) cannot be traced (not done in time)"
    monkeypatch.setattr(check, "build_graph", lambda *words: time.sleep(5))
    with pytest.raises(UserError, match="not built within 0.3 s; raise --graph-time-limit"):
        run_preflight(toy(Chain), time_limit=0.3)


def masked(found, share=0.5):
    rng = np.random.default_rng(2)
    masks = {g.name: rng.random(g.size) < share for g in found}
    for mask in masks.values():
        mask[0] = True
    return masks


def assert_cut_is_right(model, tmp_path):
    """Equal to zeroed channels, and a checkpoint of it gives the same outputs; gives
    the cut model.
    """
    model = randomised(model)
    found = find_groups(model)
    smaller = Prunable(model, found).cut(masked(found))
    assert (
        largest_difference(smaller, Prunable(model, found).zero_channels(masked(found))) < TOLERANCE
    )
    save_model(smaller, tmp_path / "x.pt")
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(smaller.eval()(x)[0], load_model(tmp_path / "x.pt").eval()(x)[0])
    return smaller


def test_rule_of_a_channelwise_block(tmp_path):
    model = detector("Partial")
    found, skipped = run_preflight(model)
    parts = {g.name: g for g in found}
    assert [(name, g.size) for name, g in parts.items()][1:3] == [
        ("model.1.conv", 4),
        ("model.1.conv#2", 12),
    ]
    first, rest = (
        {(m.name, m.kind): m.layer_channels.tolist() for m in parts[n].members}
        for n in parts
        if "model.1." in n
    )
    assert (
        first["model.2.conv", "out"]
        == first["model.2.conv", "in"]
        == first["model.3.conv", "in"]
        == [0, 1, 2, 3]
    )
    assert rest["model.3.conv", "in"] == list(range(4, 16)) and ("model.2.conv", "out") not in rest
    assert [s.layer for s in skipped] == ["model.5.m.0"]
    smaller = assert_cut_is_right(model, tmp_path)
    assert smaller.model[2].first == smaller.model[2].conv.weight.shape[1] < 4


def test_rule_of_a_block_with_inputs_and_outputs_apart(tmp_path):
    model = detector("Hidden", 20)
    found, _ = run_preflight(model)
    second, third = (
        {(m.name, m.kind) for m in g.members}
        for g in found
        if g.name in ("model.1.conv", "model.2")
    )
    assert [g.size for g in found] == [16, 16, 20, 24, 24]
    assert second == {("model.1.conv", "out"), ("model.1.bn", "norm"), ("model.2.weights", "in")}
    assert third == {("model.2.weights", "out"), ("model.3.conv", "in")}
    smaller = assert_cut_is_right(model, tmp_path)
    outputs, inputs = smaller.model[2].weights.weight.shape[:2]
    assert (
        inputs == smaller.model[1].conv.out_channels < 16
        and outputs == smaller.model[3].conv.in_channels < 20
    )


def test_keep_whole_says_why(monkeypatch):
    monkeypatch.setattr(Spatial, "no_prune", ("squeeze",))
    with pytest.raises(UserError, match=r"Spatial: no_prune = \('squeeze',\) does not say why"):
        run_preflight(detector("Spatial"))


def test_no_prune_and_detached_channels(tmp_path, monkeypatch):
    model = detector("Spatial")
    found, reasons = names_and_reasons(model)
    assert (
        "model.2.conv.conv" in found
        and reasons["model.2.squeeze"] == "its block (Spatial) keeps it whole: two gates"
    )
    smaller = assert_cut_is_right(model, tmp_path)
    assert smaller.model[2].squeeze.weight.shape == model.model[2].squeeze.weight.shape
    monkeypatch.setattr(
        "tests.preflight_toys.detach_channels", lambda x: x
    )  # without it the gates tie what they multiply
    assert "model.2.conv.conv" not in names_and_reasons(model)[0]


def test_detach_channels_is_nothing_outside_of_tracing():
    x = torch.ones(2, requires_grad=True) * 2
    assert detach_channels(x) is x
    with tracing() as detached:
        y = detach_channels(x)
    assert not y.requires_grad and torch.equal(x, y) and detached == [x] and detach_channels(x) is x


def test_every_layer_is_in_a_group_or_skipped_once():
    for block in ("Shuffle", "Halves", "Partial", "Spatial", "Attention"):
        model = detector(block)
        found, skipped = run_preflight(model)
        layers = Counter({name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)})
        grouped = Counter(
            {m.name for g in found for m in g.members if m.kind in ("out", "depthwise")}
        )
        assert grouped + Counter(s.layer for s in skipped) == layers


def rows_of(model, *ignore):
    found, skipped = run_preflight(model, ignore)
    return {e.layer: e for e in layer_fates(Prunable(model, found, skipped))}, found, skipped


def test_table_has_every_module_with_parameters():
    content = with_row("Shuffle")
    content["head"][-1] = [[-1], 1, "IDetect", ["nc", "anchors"]]
    model = build_model(content)
    rows, _, _ = rows_of(model, "4")
    holders = {
        n
        for n, m in model.named_modules()
        if list(m.parameters(recurse=False)) and not n.startswith(("model.5.i",))
    }
    assert set(rows) == holders | {"model.5.ia.0.implicit", "model.5.im.0.implicit"}
    assert rows["model.0.conv"] == LayerFate(
        "model.0.conv", "Conv2d", 16, "prunable", "read by 1 layer"
    )
    assert rows["model.0.bn"] == LayerFate(
        "model.0.bn", "BatchNorm2d", 16, "prunable", "goes with model.0.conv"
    )
    assert rows["model.4.conv"] == LayerFate(
        "model.4.conv", "Conv2d", 24, "ignored", "ignored by the user"
    )
    assert rows["model.4.bn"].detail == rows["model.5.ia.0.implicit"].detail
    assert rows["model.4.bn"].status == "ignored" and rows["model.4.bn"].detail.startswith(
        "stays whole with model.4.conv: "
    )
    assert rows["model.5.m.0"] == LayerFate(
        "model.5.m.0", "Conv2d", 14, "not prunable", "makes the output of the model"
    )
    assert (
        rows["model.5.im.0.implicit"].channels == 14
        and "makes the output" in rows["model.5.im.0.implicit"].detail
    )
    assert rows["model.2.conv.bn"].detail.startswith(
        "stays whole with model.2.conv.conv: row 2 (Shuffle) cannot be traced"
    )
    assert rows["model.2.wise.conv"].status == "not prunable"


def test_table_of_ties_and_of_parts():
    rows, _, _ = rows_of(build_model("yolov5n", nc=2))
    residual = rows["model.4.cv1.conv"]
    assert residual.detail == "tied to model.4.m.0.cv2.conv, model.4.m.1.cv2.conv; read by 3 layers"
    model = detector("Partial")
    found, skipped = run_preflight(model)
    rows = {
        e.layer: e
        for e in layer_fates(
            Prunable(model, [g for g in found if g.name != "model.1.conv"], skipped)
        )
    }
    assert (
        rows["model.1.conv"].detail == "12 of 16 channels; read by 1 layer"
        and rows["model.1.conv"].status == "prunable"
    )
    assert rows["model.2.conv"].status == "not prunable"


def test_table_fits_a_terminal_and_the_files_have_all(tmp_path):
    model = build_model("yolov7-tiny", nc=2)
    rows, found, skipped = rows_of(model, "model.*.conv")
    prunable = Prunable(model, found, skipped)
    lines = table(list(rows.values())).splitlines()
    assert len(lines) == len(rows) + 1 and max(map(len, lines)) <= 140
    short = short_form(prunable).splitlines()
    assert len(short) == 22 and short[-1] == f"  and {len(skipped) - 20} more, see skipped.csv"
    assert (
        short[0] == f"{sum(g.size for g in found)} channels in {len(found)} groups can be cut,"
        f" {len(skipped)} layers cannot"
    )
    write_preflight(prunable, tmp_path)
    with (tmp_path / "preflight.csv").open(newline="") as file:
        assert [(r["layer"], r["detail"]) for r in csv.DictReader(file)] == [
            (e.layer, e.detail) for e in rows.values()
        ]
    with (tmp_path / "skipped.csv").open(newline="") as file:
        assert [(r["layer"], r["reason"]) for r in csv.DictReader(file)] == [
            (s.layer, s.reason) for s in skipped
        ]


@pytest.mark.parametrize(("block", "args"), [("Attention", []), ("Hidden", [20])])
def test_products_that_no_layer_owns_are_predicted_too(block, args):
    """Attention costs 4/5 of this net: a constant for it would miss the target far, and the
    prediction with it.
    """
    model = detector(block, *args)
    found = find_groups(model)
    cost = Cost(ChannelIndex(model, found), 128)
    keep = ChannelIndex(model, found).all_kept()
    assert cost.other > 0 and cost.macs(keep) == cost.base
    keep[:8] = False
    smaller = Prunable(model, found).cut(ChannelIndex(model, found).by_group(keep))
    assert cost.macs(keep) == count_macs(smaller.fuse(), 128) < cost.base
    plan = Prunable(model, found).search(PRUNERS["lamp"](), Target(2.0, imgsz=128))
    assert 2.0 <= plan.speed_up < 2.05
    # asserts predicted == measured
    verify(
        ChannelIndex(model, found),
        plan.masks,
        plan.macs,
        Prunable(model, found).cut(plan.masks),
        128,
    )


def test_attention_by_hand():
    """n cells, c channels of query and key, v of values: n x n x (c + v) products."""
    model = detector("Attention")
    found = find_groups(model)
    cost = Cost(ChannelIndex(model, found), 128)
    cells = (128 // 16) ** 2
    assert cost.other == cells * cells * (16 + 16)
    masks = {
        g.name: (
            np.arange(g.size)
            < (10 if g.name == "model.2.query.conv" else 7 if ".2." in g.name else 99)
        )
        for g in found
    }
    smaller = Prunable(model, found).cut(masks)
    products = count_macs(smaller.fuse(), 128) - sum(
        macs for macs, _, _ in macs_by_module(smaller.fuse(), 128).values()
    )
    assert products == cells * cells * (10 + 7)

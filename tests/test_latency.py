"""The target in time, on clocks of our own: no test depends on how fast this machine is."""

from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from models import Model, build_model
from prune_methods import PRUNERS, Limits, Plan, Prunable, Target, find_groups
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.search.cost import Cost
from prune_methods.search.latency import (
    LayerClock,
    TimeModel,
    deployed_layers,
    fit_time_model,
    narrowed,
)
from prune_methods.search.plan import floors
from recipes.prune import latency as prune_latency
from recipes.prune.latency import (
    LatencySetup,
    Timing,
    both_ratios,
    close_the_loop,
    compare,
    cost_fn_of,
    latency_setup,
    next_goal,
    time_model,
    timing_of,
)
from tests.prune_toys import TINY_REP, Chain, Csp, toy
from utils.comparison import slow_note
from utils.errors import UserError
from utils.options.prune import PruneOptions

CPU = torch.device("cpu")


def parts(kind: type[nn.Module] = Chain) -> tuple[Any, ChannelIndex, Cost]:
    model = toy(kind)
    index = ChannelIndex(model, find_groups(model))
    return model, index, Cost(index, 32)


@contextmanager
def time_is_macs():
    """A clock that only convolutions move: by their MACs, in seconds. Everything else is free."""
    now = [0.0]

    def work(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            now[0] += output.numel() * module.weight[0].numel()

    handle = register_module_forward_hook(work)
    try:
        yield lambda: now[0]
    finally:
        handle.remove()


def test_time_by_hand():
    _, index, cost = parts()  # stem 3 -> 8, mid 8 -> 6, out 6 -> 4
    assert cost.layers == ("stem.0", "mid.0", "out")
    terms = np.array([[1.0, 2, 3], [10, 20, 30], [100, 200, 300], [1000, 2000, 3000]])
    cost_fn, keep = TimeModel(cost, index.all_kept(), terms), index.all_kept()
    assert cost_fn(keep) == pytest.approx(terms.sum())
    keep[[0, 1, 8, 9, 10]] = False  # 6 of 8 and 3 of 6 stay
    stem = 1 + 10 * 0.75 + 100 + 1000 * 0.75
    mid = 2 + 20 * 0.5 + 200 * 0.75 + 2000 * 0.375
    assert cost_fn(keep) == pytest.approx(stem + mid + 3 + 30 + 300 * 0.5 + 3000 * 0.5)


def test_fit_finds_the_terms_behind_the_times():
    _, index, cost = parts(Csp)
    generator, everything = np.random.default_rng(1), index.all_kept()
    keeps = [
        everything,
        *(narrowed(index, np.ones_like(index.sizes), 1, generator) for _ in range(12)),
    ]
    truth = TimeModel(cost, everything, generator.uniform(0.5, 1.5, (4, len(cost.layers))))
    truth.terms[2, 1:] = 0  # a term that is not there is found to be none, not a negative one
    seconds = np.stack([(truth.terms * truth.features(keep)).sum(0) for keep in keeps])
    found = fit_time_model(cost, everything, keeps, seconds)
    assert (found.terms >= 0).all()
    other = narrowed(index, np.ones_like(index.sizes), 1, generator)
    np.testing.assert_allclose(
        (found.terms * found.features(other)).sum(0), (truth.terms * truth.features(other)).sum(0)
    )
    free = [
        cost.layers.index(f"{name}.0") for name in ("right", "join", "merge")
    ]  # both sides vary, each for itself
    np.testing.assert_allclose(found.terms[:, free], truth.terms[:, free], atol=1e-9)


def test_narrowed_copies_keep_to_the_limits():
    _, index, _ = parts(Csp)
    lowest = floors(index.sizes, Limits(min_channels=8, round_to=4))
    counts = [index.counts(narrowed(index, lowest, 4, np.random.default_rng(n))) for n in range(20)]
    assert (np.array(counts) >= lowest).all() and (np.array(counts) <= index.sizes).all()
    assert (np.array(counts) % 4 == 0).all() and len({tuple(c) for c in counts}) > 10


class Steps(nn.Module):
    """a, b, a again; b is followed by something slow that is no layer."""

    def __init__(self, now):
        super().__init__()
        self.a, self.b, self.now = nn.Linear(2, 2), nn.Linear(2, 2), now
        for layer, seconds in ((self.a, 1.0), (self.b, 10.0)):
            layer.register_forward_hook(lambda *_, seconds=seconds: self.wait(seconds))

    def wait(self, seconds):
        self.now[0] += seconds

    def forward(self, x):
        self.wait(0.5)
        x = self.b(self.a(x))
        self.wait(100.0)
        return self.a(x)


def test_layer_clock_shares_out_all_of_the_time():
    now = [0.0]
    clock = LayerClock(Steps(now), ["a", "b"], CPU, lambda: now[0])
    for _ in range(2):
        before = now[0]
        seconds = clock.run(torch.zeros(1, 2))
        assert seconds.tolist() == [0.5 + 1 + 1, 10 + 100] and seconds.sum() == now[0] - before


def test_layers_are_found_again_in_the_deployed_model():
    model = build_model(TINY_REP)
    index = ChannelIndex(model, find_groups(model))
    cost, deployed = Cost(index, 64), model.fuse()
    names = deployed_layers(cost, deployed)
    assert (
        names[cost.layers.index("model.2.rbr_dense.0")] == "model.2.conv"
        and names[0] == "model.0.conv"
    )
    for trained, name in zip(cost.layers, names, strict=True):
        assert (
            model.get_submodule(trained).weight.shape == deployed.get_submodule(name).weight.shape
        )
    cost.layers = cost.layers[1:]
    with pytest.raises(UserError, match="--target macs would be right"):
        deployed_layers(cost, deployed)


def test_the_fastest_samples_of_the_time_model_are_warm(monkeypatch):
    """Each of the thirteen models runs twice in a row: between two turns the others may have taken
    its kernels' place.
    """
    model, order = build_model(TINY_REP), []
    run = prune_latency._run
    monkeypatch.setattr(
        prune_latency,
        "_run",
        lambda layers, images: order.append(id(layers)) or run(layers, images),
    )
    with time_is_macs() as clock:
        time_model(Prunable.of(model), Limits(), LatencySetup(CPU, 2, 64, 0.0), clock)
    assert len(set(order)) == 13 and order[::2] == order[1::2]


def test_where_time_is_macs_the_prediction_is_the_macs():
    model = build_model(TINY_REP)
    found = find_groups(model)
    with time_is_macs() as clock:
        cost_fn = time_model(Prunable(model, found), Limits(), LatencySetup(CPU, 2, 64, 0.0), clock)
        plan = Prunable(model, found).search(PRUNERS["l1"](), Target(1.5, cost_fn=cost_fn))
        smaller = cast(Model, Prunable(model, found).cut(plan.masks))
        timing = compare(model, smaller, LatencySetup(CPU, 2, 64, 0.0), clock)
    index = ChannelIndex(model, found)
    cost, keep = Cost(index), index.flatten(plan.masks)
    assert cost_fn(index.all_kept()) / cost_fn(keep) == pytest.approx(
        cost.base / cost.macs(keep), rel=1e-6
    )
    assert (
        plan.ratio == pytest.approx(plan.speed_up, rel=1e-6) and plan.met and plan.speed_up < 1.55
    )
    assert timing.ratio == pytest.approx(plan.speed_up, rel=1e-6) and timing.error < 1e-6


def test_a_price_counts_instead_of_macs_and_the_ranking_stays():
    """The cost_fn of one group's channels: the search stops where half of them are gone, whatever
    the MACs.
    """
    model, index, cost = parts(Csp)
    found, limits, kept = find_groups(model), Limits(min_channels=1), []
    mine = np.append(index.group_of == 2, False)

    def cost_fn(keep: np.ndarray) -> float:
        return float((keep & mine).sum())

    plan = Prunable(model, found).search(
        PRUNERS["l1"](), Target(2.0, imgsz=32, cost_fn=cost_fn), limits=limits
    )
    Prunable(model, found).search(
        PRUNERS["l1"](),
        Target(99.0, imgsz=32),
        limits=limits,
        on_step=lambda step, masks: kept.append(masks),
    )
    left, size = int(plan.masks[found[2].name].sum()), found[2].size
    assert left == size // 2 and plan.ratio == size / left != plan.speed_up and plan.met
    before, after = (
        index.flatten(kept[len(plan.steps) - n]) for n in (2, 1)
    )  # the same steps as for MACs, the last one partly
    keep = index.flatten(plan.masks)
    assert (keep <= before).all() and (keep >= after).all() and plan.macs == cost.macs(keep)
    assert Prunable(model, found).reachable(limits, cost_fn, 32) == size


def test_ratio_and_error_by_hand():
    timing = timing_of([2.0, 3.0, 4.0, 6.0], [1.0, 1.0, 2.0, 2.0])  # pair by pair 2, 3, 2, 3
    assert (timing.base_ms, timing.pruned_ms, timing.ratio, timing.rounds) == (
        3500.0,
        1500.0,
        2.5,
        4,
    )
    assert timing.error == pytest.approx(2 * 1.2533 * 1.4826 * 0.5 / 2)
    assert (
        str(timing)
        == "3500.0 -> 1500.0 ms, 2.50x ± 0.93 (median of 4), on a machine too busy to tell"
    )
    assert "busy" not in str(replace(timing, error=0.14 * 2.5))


def plan_of(goal: float, reachable: float = 9.0) -> Plan:
    reached = min(goal, reachable)
    return Plan({}, (), 10**9, round(10**9 / reached**2), goal, reached)


def timing(ratio: float, error: float = 0.0) -> Timing:
    return Timing(ratio, 1.0, ratio, error, 9)


def test_the_loop_corrects_until_the_measured_time_meets_the_target():
    goals = []

    def search(goal: float) -> Plan:
        goals.append(goal)
        return plan_of(goal)

    plan = close_the_loop(
        search, lambda plan: timing(1 + 0.5 * (plan.ratio - 1)), 1.5
    )  # half of what is predicted comes true
    assert (
        goals[:2] == [1.5, pytest.approx(1.5 * 1.515 / 1.25)] and len(goals) == 4
    )  # aims at the middle of 1.5 to 1.53
    assert plan.target == 1.5 and plan.met and 1.5 <= plan.ratio <= 1.53
    goals.clear()
    plan = close_the_loop(
        search, lambda plan: timing(1.25 * plan.ratio), 1.5
    )  # quicker than predicted: less is cut
    assert (
        len(goals) == 2
        and plan.ratio == pytest.approx(1.515)
        and plan.speed_up == pytest.approx(1.212**2)
    )


def test_the_next_goal_lies_between_what_was_too_slow_and_what_was_too_quick():
    assert next_goal([(1.5, 1.2)], 1.5) == pytest.approx(1.875)
    assert next_goal([(1.5, 1.2), (2.0, 1.6)], 1.5) == pytest.approx(
        1.875
    )  # a quarter back from 2.0
    assert next_goal([(1.5, 1.2), (2.5, 1.9), (2.0, 1.6)], 1.5) == pytest.approx(
        1.875
    )  # the nearest ones, in any order
    assert next_goal([(1.8, 1.6), (1.9, 1.4)], 1.5) == pytest.approx(
        1.85
    )  # noise: the larger goal came out slower
    assert next_goal([(1.2, 5.0)], 1.5) == 1.001


def test_the_loop_does_not_swing_where_the_time_falls_faster_than_predicted():
    """Measured = predicted^1.6: correcting each cut in proportion would swing around 1.5 with ever
    the same error.
    """
    measured = []

    def measure(plan: Plan) -> Timing:
        measured.append(plan.ratio**1.6)
        return timing(measured[-1])

    plan = close_the_loop(plan_of, measure, 1.5)
    assert (
        len(measured) == 3
        and measured[0] > 1.9
        and measured[1] < 1.4
        and plan.ratio == pytest.approx(1.515, rel=0.01)
    )


def test_the_loop_converges_on_a_noisy_clock():
    """The same, each measuring up to 3 % off while it says 1 %: what is chosen is near the target
    in truth.
    """
    errors = []
    for seed in range(100):
        generator = np.random.default_rng(seed)

        def measure(plan: Plan, generator: np.random.Generator = generator) -> Timing:
            return timing(plan.ratio**1.6 * generator.uniform(0.97, 1.03), 0.015)

        plan = close_the_loop(plan_of, measure, 1.5)
        predicted = plan.speed_up**0.5  # as plan_of makes it
        errors.append(predicted**1.6 / 1.5 - 1)
        assert plan.met
    assert (
        np.sqrt(np.mean(np.square(errors))) < 0.025 and np.median(np.abs(errors)) < 0.02
    )  # in proportion: .053


def test_the_noise_of_the_clock_decides_what_is_met():
    assert close_the_loop(plan_of, lambda plan: timing(1.45, 0.06), 1.5).met
    assert not close_the_loop(plan_of, lambda plan: timing(1.45, 0.04), 1.5).met


def test_a_time_that_cannot_be_reached_gives_the_quickest():
    plan = close_the_loop(
        lambda goal: plan_of(goal, 1.8), lambda plan: timing(plan.ratio / 1.5), 1.5
    )
    assert not plan.met and plan.ratio == pytest.approx(1.2)


def test_batch_of_a_cpu_fits_the_model():
    model, opt = build_model("yolov5n", nc=3), PruneOptions(latency_seconds=1.5)
    assert model.info(640)["macs"] == pytest.approx(2.07e9, rel=0.02)  # 16e9 holds 7 images: 4
    assert latency_setup(model, replace(opt, imgsz=640)).batch == 4
    assert latency_setup(model, replace(opt, imgsz=128)).batch == 32
    setting = latency_setup(model, replace(opt, imgsz=640, latency_batch=3))
    assert (
        str(setting) == f"batch 3 at 640 px, CPU, fp32, {torch.get_num_threads()} threads"
        and setting.seconds == 1.5
    )


def test_what_cannot_be_done_in_time_is_told_beforehand(monkeypatch):
    model, index, cost = parts()
    prunable = Prunable.of(model)
    assert cost_fn_of(prunable, PruneOptions()) is None
    assert both_ratios(model, model, PruneOptions(latency_seconds=0)) == []
    with pytest.raises(UserError, match="--latency-seconds 2 would be right"):
        cost_fn_of(prunable, PruneOptions(target="latency", latency_seconds=0))
    half = np.repeat(
        [[1.0], [0.0], [0.0], [1.0]], 3, axis=1
    )  # calls are half of the time: less than 2x is there
    monkeypatch.setattr(
        prune_latency, "time_model", lambda *_: TimeModel(cost, index.all_kept(), half)
    )
    monkeypatch.setattr(prune_latency, "latency_setup", lambda *_: None)
    best = 6 / (3 + 0.5 + 4 / 8 * 4 / 6 + 4 / 6)  # 4 channels stay everywhere
    with pytest.raises(UserError, match=f"about {best:.2f}x at most"):
        cost_fn_of(prunable, PruneOptions(target="latency", speed_up=1.5))
    assert cost_fn_of(prunable, PruneOptions(target="latency", speed_up=1.3)) is not None
    assert (
        cost_fn_of(prunable, PruneOptions(target="latency", speed_up=1.5, allow_less=True))
        is not None
    )


@pytest.mark.parametrize(
    ("flops", "speed", "noted"),
    [(2.0, 1.19, True), (2.0, 1.21, False), (1.8, 1.15, True), (1.7, 1.15, False)],
)
def test_half_the_flops_for_little_time_is_noted(flops, speed, noted):
    note = slow_note("x", flops, speed)
    assert bool(note) == noted and (not noted or "--target latency" in note)

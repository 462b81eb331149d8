"""The weight of distillation over a run."""

import pytest

from distill.schedule import KD_SCHEDULES, kd_weight
from tests.conftest import ROOT
from utils.errors import UserError
from utils.registry import registered_names


def test_names():
    assert (
        KD_SCHEDULES.names()
        == ["constant", "linear", "cosine"]
        == registered_names(ROOT / "distill", "KD_SCHEDULES")
    )
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        kd_weight("cosin", 0, 10)


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.7525, 0.505, 0.2575, 0.01]),
        ("cosine", [1, 0.855017856687341, 0.505, 0.154982143312659, 0.01]),
    ],
)
def test_quarters_by_hand(schedule, weights):
    assert [kd_weight(schedule, quarter, 4) for quarter in range(5)] == pytest.approx(
        weights, rel=1e-12
    )


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_falls_from_one_to_the_floor_and_never_back(schedule, floor):
    steps = 173
    weights = [kd_weight(schedule, step, steps, floor=floor) for step in range(steps + 1)]
    assert weights[0] == 1
    assert weights[-1] == pytest.approx(1 if schedule == "constant" else floor, abs=1e-15)
    assert all(later <= earlier for earlier, later in zip(weights, weights[1:], strict=False))


def test_a_longer_run_has_the_same_curve():
    assert kd_weight("cosine", 30, 100) == pytest.approx(kd_weight("cosine", 300, 1000), rel=1e-12)


def test_stop_ends_at_the_epoch_and_does_not_bend_the_curve():
    for epochs in (10, 100, 300):
        for last in range(1, epochs):
            at = [
                kd_weight("linear", step, epochs * 7, stop=last / epochs)
                for step in (last * 7 - 1, last * 7)
            ]
            assert at == [kd_weight("linear", last * 7 - 1, epochs * 7), 0]
    assert kd_weight("constant", 10, 10, stop=1) == 1
    assert kd_weight("constant", 0, 10, stop=0) == 0


def test_warmup_lets_it_in():
    weights = [kd_weight("constant", step, 100, warmup=10) for step in (0, 5, 10, 50)]
    assert weights == pytest.approx([0, 0.5, 1, 1])
    assert kd_weight("linear", 5, 100, floor=0, warmup=10) == pytest.approx(0.5 * 0.95)

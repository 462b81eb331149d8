"""The alternating clock, with a clock of our own."""

from utils.timing import alternate, median_ms, ratio_line


def test_candidates_take_turns_and_the_first_round_is_not_counted():
    now, order = [0.0], []

    def work(name: str, cost: float):
        def run():
            order.append(name)
            now[0] += cost

        return run

    times = alternate(
        {"a": work("a", 1.0), "b": work("b", 2.0)}, seconds=6, min_rounds=1, clock=lambda: now[0]
    )
    assert order == ["a", "b"] * 3
    assert times == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_min_rounds_hold_when_time_is_up():
    now = [0.0]

    def slow():
        now[0] += 100.0

    assert alternate({"slow": slow}, seconds=1, min_rounds=4, clock=lambda: now[0]) == {
        "slow": [100.0] * 4
    }


def test_figures():
    assert median_ms([0.001, 0.003, 0.1]) == 3.0
    assert ratio_line("x", [0.5, 1.0, 0.75]) == "x: 0.75 (median of 3; 0.5 to 1)"


def test_warm_runs_come_before_their_counted_ones():
    """Whoever follows another is slow, as a network whose kernels were thrown out of the cache."""
    now, last = [0.0], [""]

    def work(name: str):
        def run():
            now[0] += 1.0 if last[0] == name else 3.0
            last[0] = name

        return run

    both = {"a": work("a"), "b": work("b")}
    assert alternate(both, seconds=0, min_rounds=2, clock=lambda: now[0], warm=True) == {
        "a": [1.0] * 2,
        "b": [1.0] * 2,
    }
    assert alternate(both, seconds=0, min_rounds=2, clock=lambda: now[0]) == {
        "a": [3.0] * 2,
        "b": [3.0] * 2,
    }

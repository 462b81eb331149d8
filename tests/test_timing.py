"""The alternating clock, with a clock of our own."""

from utils.timing import alternate, median_ms, ratio_line


def test_candidates_take_turns_and_the_first_round_is_not_counted():
    now, order = [0.0], []

    def work(name: str, cost: float):
        def run():
            order.append(name)
            now[0] += cost

        return run

    times = alternate({"a": work("a", 1.0), "b": work("b", 2.0)}, seconds=6, min_rounds=1, clock=lambda: now[0])
    assert order == ["a", "b"] * 3
    assert times == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_min_rounds_hold_when_time_is_up():
    now = [0.0]

    def slow():
        now[0] += 100.0

    assert alternate({"slow": slow}, seconds=1, min_rounds=4, clock=lambda: now[0]) == {"slow": [100.0] * 4}


def test_figures():
    assert median_ms([0.001, 0.003, 0.1]) == 3.0
    assert ratio_line("x", [0.5, 1.0, 0.75]) == "x: 0.75 (median of 3; 0.5 to 1)"

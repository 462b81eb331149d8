"""The long benchmarks: what is run, in which order, once; and tables that say what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.results_runs import METHODS, SPARSE_METHODS, Recipe, demo_recipe, runs_of
from benchmarks.results_tables import curve_table, methods_table, noise
from benchmarks.runner import Run, chosen, done, execute
from utils.comparison import ComparisonRow
from utils.errors import UserError
from utils.options.prune import METHODS as PRUNING_METHODS


def recipe(project: Path) -> Recipe:
    return replace(
        demo_recipe(project, ("lamp", "slim"), seeds=(0, 1)), curve=(1.5, 2.0), longer=("slim",)
    )


def test_every_method_of_the_registry_is_compared():
    assert {*METHODS, *SPARSE_METHODS} == set(PRUNING_METHODS)


def test_runs_come_after_those_they_need_and_count_their_epochs(tmp_path):
    runs = runs_of(recipe(tmp_path))
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    assert all(names.index(need) < names.index(run.name) for run in runs for need in run.needs)
    total = {run.name: run.total for run in runs}
    assert total == {
        **dict.fromkeys(("base-0", "base-1", "base-2"), 40),
        **dict.fromkeys(
            ("control-0", "control-1", "lamp-2x", "lamp-2x-seed1", "lamp-1.5x", "scratch"), 60
        ),
        "sparse-slim": 80,
        "slim-2x": 100,
        "slim-1.5x": 100,
        "sparse-slim-long": 160,
        "slim-2x-long": 180,
    }
    [slim] = [run for run in runs if run.name == "slim-2x"]
    assert str(tmp_path / "sparse-slim" / "weights" / "last.pt") in slim.words


def test_one_run_brings_those_it_needs(tmp_path):
    runs = runs_of(recipe(tmp_path))
    assert [run.name for run in chosen(runs, ["slim-2x"])] == ["base-0", "sparse-slim", "slim-2x"]
    assert chosen(runs, []) == runs
    with pytest.raises(UserError, match="--only lamb: no such run"):
        chosen(runs, ["lamb"])


def test_runs_are_done_once_and_failures_stop_what_needs_them(tmp_path):
    def says(text: str) -> tuple[str, ...]:
        return ("-c", f"open({str(tmp_path / 'out.txt')!r}, 'a').write('{text}')")

    runs = [
        Run("a", says("a"), 1, 1),
        Run("bad", ("-c", "raise SystemExit(3)"), 1, 1),
        Run("after", says("never"), 1, 1, needs=("bad",)),
        Run("b", says("b"), 1, 1, needs=("a",)),
    ]
    assert execute(tmp_path, runs, jobs=2) == ["bad", "after"]
    assert execute(tmp_path, runs, jobs=1) == ["bad", "after"]
    assert (tmp_path / "out.txt").read_text() == "ab"
    assert done(tmp_path, runs[0]) and not done(tmp_path, runs[1])
    changed = Run("a", says("A"), 1, 1)
    assert not done(tmp_path, changed)  # another command under an old name
    assert json.loads((tmp_path / "a" / "done.json").read_text())["command"] == list(runs[0].words)


def row(
    name: str, value: float, parameters: int = 100, gflops: float = 4.0, latency: float = 2.0
) -> ComparisonRow:
    return ComparisonRow(
        name, parameters, parameters, gflops, gflops, 1.0, 2 * value, value, latency, 64, "x.pt"
    )


def test_tables_by_hand(tmp_path):
    made = recipe(tmp_path)
    runs = {run.name: run for run in runs_of(made)}
    values = {
        "base-0": 0.30,
        "base-1": 0.32,
        "base-2": 0.34,
        "control-0": 0.3,
        "control-1": 0.4,
        "scratch": 0.2,
    }
    rows = {name: row(name, value) for name, value in values.items()}
    for name, cut, tuned in [
        ("lamp-2x", 0.1, 0.3),
        ("slim-2x", 0.2, 0.25),
        ("lamp-1.5x", 0.2, 0.3),
        ("slim-1.5x", 0.2, 0.3),
        ("slim-2x-long", 0.2, 0.28),
    ]:
        rows |= {f"{name}, cut": row(f"{name}, cut", cut), name: row(name, tuned, 25, 2.0, 1.6)}
    rows["lamp-2x-seed1"] = row("lamp-2x-seed1", 0.32, 25, 2.0)
    lines = [line.strip("| ").split(" | ") for line in methods_table(made, runs, rows).splitlines()]
    first = ["base", "base + the finetune's epochs, uncut", "LAMP's 2x shape from new weights"]
    assert [line[0] for line in lines[2:]] == [
        *first,
        "lamp",
        "slim, sparse-trained",
        "slim, 3x the epochs, sparse-trained",
    ]
    assert lines[2][7:9] == ["0.640 ± 0.040", "0.320 ± 0.020"]
    lamp = "lamp|60|25 (25%)|2.00 (2.00x)|1.00|0.200|0.100|0.620 ± 0.028|0.310 ± 0.014|1.60 (1.25x)"
    assert lines[5] == lamp.split("|")
    assert "base 0.300 to 0.340 (standard deviation 0.020)" in noise(rows)
    assert [line.split(" | ")[0] for line in curve_table(made, runs, rows).splitlines()[4:]] == [
        "| lamp 1.5x", "| lamp 2x", "| slim 1.5x", "| slim 2x"
    ]  # fmt: skip


def test_distillation_is_compared_by_seed(tmp_path):
    from benchmarks import distillation

    made = distillation.large_recipe(tmp_path)
    runs = {run.name: run for run in distillation.table_runs(made)}
    assert len(runs) == 10 * 3 + 6 * 3 + (1 + 2 * 4) * 3
    words = runs["cwd-sgd-1"].words
    assert words[words.index("--adapter") + 1] == "sgd"
    words = runs["cwd+ast-2"].words
    assert words[0] == "distill.py" and words[words.index("--feature-loss") + 1] == "cwd"
    assert words[words.index("--logit-loss") + 1] == "ast"
    assert float(words[words.index("--feature-weight") + 1]) == distillation.WEIGHTS["cwd"]
    assert distillation.loss_words("cwd+mgd", 0.5) == (
        "--feature-loss",
        "cwd",
        "mgd",
        "--feature-weight",
        "0.5",
        "0.5",
    )
    for name, teacher in (("pruned-self-cwd-3", "alone-3"), ("pruned-strong-cwd-3", "teacher")):
        words = runs[name].words
        assert words[0] == "prune.py"
        assert words[words.index("--teacher") + 1] == str(made.best(teacher))
    assert "--teacher" not in runs["pruned-alone-3"].words
    values = {
        "alone-1": 0.30,
        "alone-2": 0.32,
        "alone-3": 0.34,
        "cwd-1": 0.31,
        "cwd-2": 0.34,
        "cwd-3": 0.37,
        "ast-2": 0.30,
    }
    for name, value in values.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.csv").write_text(f"epoch,metrics/mAP_0.5:0.95\n7,{value}\n")
        (tmp_path / name / "done.json").write_text("{}")
    (tmp_path / "ast-2" / "done.json").rename(
        tmp_path / "done.json"
    )  # ast is not complete at any seed
    rows = distillation.comparison(
        made, "alone-{seed}", {row: f"{row}-{{seed}}" for row in ("ast", "cwd")}
    ).splitlines()
    assert rows[2:] == [
        "| alone | 0.320 ± 0.020 |  |  |",
        "| cwd | 0.340 ± 0.030 | +0.010 +0.020 +0.030 | +0.020 ± 0.010 |",
    ]
    assert distillation.spread([0.3]) == "0.300"


@pytest.mark.parametrize("folder", ["cwd-1", "pruned-cwd-1/finetune"])
def test_distillation_is_judged_by_the_last_epoch(tmp_path, folder):
    from benchmarks import distillation

    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "results.csv").write_text("epoch,metrics/mAP_0.5:0.95\n0,0.4\n1,0.3\n")
    assert distillation.last_map(distillation.large_recipe(tmp_path), folder.split("/")[0]) == 0.3

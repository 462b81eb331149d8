"""train_sparse.py as a user runs it: files, columns, pictures, an exact resume after kill -9."""

import csv
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.flow.runs import TINY, command, environment, same_weights, tiny_set
from tests.flow.test_resume import wait_for

pytestmark = pytest.mark.flow
EPOCHS = 5
RUN = [
    *TINY,
    "--data",
    "tiny.yaml",
    "--epochs",
    str(EPOCHS),
    "--method",
    "group_reg",
    "--delta-every",
    "2",
    "--reg-decay",
    "cosine",
]
"""The method with the most state of its own, and a decay that it does not have."""


def sparse(*words: str | Path, folder: Path, wait: bool = True):
    process = subprocess.Popen(
        command(*words, script="train_sparse.py"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if not wait:
        return process, ""
    output, _ = process.communicate(timeout=300)
    return process, output


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with the data set and an uninterrupted run."""
    folder = tmp_path_factory.mktemp("sparse")
    tiny_set(folder)
    process, output = sparse(*RUN, "--name", "whole", folder=folder)
    assert process.returncode == 0, output[-2000:]
    (folder / "output.txt").write_text(output)
    return folder


def test_columns_statistics_and_console(whole):
    folder, output = whole / "runs/sparse/whole", (whole / "output.txt").read_text()
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (
        list(rows[0])[-3:] == ["sparse/reg", "sparse/gamma_lt_0.01", "sparse/mean_abs_gamma"]
        and len(rows) == EPOCHS
    )
    assert float(rows[0]["sparse/reg"]) < float(rows[-1]["sparse/reg"]), "lambda grows"
    with (folder / "bn/stats.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == EPOCHS * 57 and {row["epoch"] for row in table} == set("01234")
    assert all(float(row["norm_p50"]) > 0 for row in table)
    mean = sum(float(r["mean_abs"]) * int(r["channels"]) for r in table[-57:]) / sum(
        int(r["channels"]) for r in table[-57:]
    )
    assert mean == pytest.approx(float(rows[-1]["sparse/mean_abs_gamma"]), rel=1e-4)
    assert "have no effect on group_reg" in output
    assert (
        "the penalty alone takes gamma from 1 to" in output
        and "Verdict: " in output
        and "mean |gamma|" in output
    )


def test_killed_and_resumed_equals_uninterrupted(whole):
    process, _ = sparse(*RUN, "--name", "killed", folder=whole, wait=False)
    weights = whole / "runs/sparse/killed/weights"
    wait_for(weights / "last.pt", process)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert torch.load(weights / "last.pt", weights_only=True)["epoch"] < EPOCHS - 1, (
        "the run was over before it was killed"
    )
    resumed, output = sparse("--resume", weights / "last.pt", folder=whole)
    assert resumed.returncode == 0, output[-2000:]
    reference = whole / "runs/sparse/whole"
    assert all(
        same_weights(reference / "weights" / name, weights / name)
        for name in ("last.pt", "best.pt")
    )
    for name in ("results.csv", "bn/stats.csv"):
        assert (reference / name).read_text() == (weights.parent / name).read_text(), name


def test_pictures_of_chosen_epochs(whole):
    words = [word for word in TINY if word != "--noplots"]
    more = [
        "--data",
        "tiny.yaml",
        "--epochs",
        "3",
        "--method",
        "group_slim",
        "--reg",
        "auto",
        "--hist-every",
        "2",
        "--name",
        "seen",
    ]
    process, output = sparse(*words, *more, folder=whole)
    assert process.returncode == 0, output[-2000:]
    folder = whole / "runs/sparse/seen/bn"
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"hist_epoch000.png", "hist_epoch002.png", "heatmap.png", "evolution.png"}
    assert list(folder.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reg", "much"], "--reg 'much': must be a number (5e-4) or auto"),
        (["--ignore", "backbone"], "--ignore: no layer is called 'backbone'"),
    ],
)
def test_wrong_options_are_one_line(whole, words, said):
    process, output = sparse(*RUN, *words, "--epochs", "1", folder=whole)
    assert process.returncode == 2 and said in output and "Traceback" not in output

"""Killed, interrupted and resumed runs end as if nothing had happened."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.flow.runs import TINY, run, same_weights, start, tiny_set

pytestmark = pytest.mark.flow
EPOCHS = 8  # enough that no machine is through within the random wait below
RUN = [*TINY, "--data", "tiny.yaml", "--epochs", str(EPOCHS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with the data set and an uninterrupted run."""
    folder = tmp_path_factory.mktemp("resume")
    tiny_set(folder)
    done = run(*RUN, "--name", "whole", folder=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def wait_for(path: Path, process, seconds: float = 120) -> None:
    end = time.time() + seconds
    while not path.exists():
        assert process.poll() is None and time.time() < end, f"no {path.name}"
        time.sleep(0.01)


@pytest.mark.parametrize(("trial", "pasted"), [(0, False), (1, True)])
def test_killed_and_resumed_equals_uninterrupted(whole, trial, pasted):
    """kill -9 at a random moment after the first checkpoint: the end is the same bit for bit.

    `pasted`: the stored options hold the image sizes as a list, as a pasted command gives them.
    """
    process = start(*RUN, "--name", f"killed{trial}", folder=whole)
    weights = whole / "runs" / "train" / f"killed{trial}" / "weights"
    wait_for(weights / "last.pt", process)
    time.sleep(random.Random(trial).uniform(0, 0.6))
    process.kill()
    process.wait()
    content = torch.load(weights / "last.pt", weights_only=True)
    epoch = content["epoch"]
    assert epoch < EPOCHS - 1, "the run was over before it was killed"
    assert (content["args"]["imgsz"], content["args"]["val_imgsz"]) == (64, 64)
    if pasted:
        del content["args"]["val_imgsz"]
        content["args"]["imgsz"] = [64, 64]
        torch.save(content, weights / "last.pt")
    resumed = run("--resume", weights / "last.pt", folder=whole)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert f"after epoch {epoch}" in resumed.stdout
    reference = whole / "runs" / "train" / "whole"
    for name in ("last.pt", "best.pt"):
        assert same_weights(reference / "weights" / name, weights / name), name
    assert (reference / "results.csv").read_text() == (weights.parent / "results.csv").read_text()


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["process", "group"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_ends_soon_and_says_how_to_go_on(whole, number, code, send):
    """To the process, as `kill` does, or to its data workers too, as Ctrl-C, `timeout` and job
    schedulers do.
    """
    name = f"{signal.Signals(number).name}-{send.__name__}"
    process = start(*RUN, "--name", name, "--epochs", "500", "--workers", "1", folder=whole)
    last = whole / "runs" / "train" / name / "weights" / "last.pt"
    wait_for(last, process)
    begin = time.time()
    send(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code and time.time() - begin < 45  # 500 epochs take far longer
    assert (
        f"python train.py --resume runs/train/{name}/weights/last.pt" in output
        and "Traceback" not in output
    )
    assert "train_state" in torch.load(last, weights_only=True)


def test_finished_run_is_not_resumed(whole):
    done = run("--resume", "runs/train/whole/weights/last.pt", folder=whole)
    assert done.returncode == 2 and "has finished" in done.stderr and "Traceback" not in done.stderr


def test_checkpoint_of_a_finished_run_is_stripped(whole):
    for name in ("last.pt", "best.pt"):
        content = torch.load(
            whole / "runs" / "train" / "whole" / "weights" / name, weights_only=True
        )
        assert "train_state" not in content
        assert (
            content["args"]["epochs"] == EPOCHS
            and content["hyp"]["nbs"] == 16
            and content["names"] == ["c0", "c1", "c2"]
        )
        assert [row["epoch"] for row in content["history"]][-1] == content["epoch"]

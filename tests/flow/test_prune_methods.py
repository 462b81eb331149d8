"""prune.py with methods that need more than the weights: gradients of training images, or sparse
training before.
"""

import csv
import subprocess
from pathlib import Path

import pytest
import torch

from models import build_model, load_model, save_model
from tests.flow.runs import run, tiny_set
from tests.prune_toys import randomised

pytestmark = pytest.mark.flow
COMMON = [
    "--data",
    "tiny.yaml",
    "--imgsz",
    "64",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--noplots",
    "--compensate",
    "recalibrate",
    "--speed-up",
    "2",
    "--finetune-epochs",
    "1",
]  # noqa: SIM905


def prune(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One run on a YOLOv5n whose batch norms have seen something, finetune included."""
    tiny_set(folder)
    torch.manual_seed(0)
    save_model(randomised(build_model("yolov5n", nc=3)), folder / "base.pt")
    return run("--weights", "base.pt", *COMMON, *words, folder=folder, script="prune.py")


def steps_and_speed_up(folder: Path) -> tuple[int, float]:
    with (folder / "runs/prune/exp/prune.csv").open() as file:
        steps = len(list(csv.DictReader(file)))
    cut = load_model(folder / "runs/prune/exp/weights/best.pt")
    return steps, load_model(folder / "base.pt").info()["macs"] / cut.info()["macs"]


def test_group_taylor_takes_gradients_once_and_every_so_many_steps(tmp_path):
    done = prune(
        tmp_path, "--method", "group_taylor", "--calib-batches", "2", "--recalib-every", "20"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    steps, speed_up = steps_and_speed_up(tmp_path)
    assert 2.0 <= speed_up < 2.05
    assert (
        done.stdout.count("Gradients of 2 training batches, one pass per batch")
        == 1 + (steps - 1) // 20
        > 2
    )
    assert "train_sparse" not in done.stdout + done.stderr


def test_slim_on_dense_weights_names_the_command_and_goes_on(tmp_path):
    done = prune(tmp_path, "--method", "slim")
    assert done.returncode == 0, done.stderr[-2000:]
    assert 2.0 <= steps_and_speed_up(tmp_path)[1] < 2.05
    text = done.stdout + done.stderr
    assert (
        text.count("python train_sparse.py --weights base.pt --data tiny.yaml --method slim") == 1
    )
    assert "Gradients" not in text

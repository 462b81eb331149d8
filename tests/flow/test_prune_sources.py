"""prune.py takes what users have: an official checkpoint, a YOLOv7, a model of their own."""

from pathlib import Path

import pytest
import torch
import yaml

from models import build_model, load_model, save_model
from tests.data_sets import write_set
from tests.flow.runs import run
from tests.prune_toys import TINY_REP, randomised

pytestmark = pytest.mark.flow
QUICK = [
    "--imgsz",
    "64",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--noplots",
    "--latency-seconds",
    "0",
    "--recalibrate-batches",
    "1",
    "--repair-steps",
    "2",
]  # noqa: SIM905


def cut_to_half(folder: Path, weights: Path | str, classes: int) -> None:
    content = write_set(folder, [(64, 64)] * 6, "train") | write_set(folder, [(64, 64)] * 2, "val")
    content["names"] = [f"class{i}" for i in range(classes)]
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    words = ("--weights", weights, "--data", "own.yaml", "--no-finetune", *QUICK)
    done = run(*words, folder=folder, script="prune.py")
    assert done.returncode == 0, done.stderr[-2000:]
    base, cut = load_model(weights), load_model(folder / "runs/prune/exp/weights/pruned.pt")
    assert (
        cut.nc == classes and 2.0 <= base.info()["macs"] / cut.info()["macs"] < 2.1
    )  # tiny layers step coarsely


def test_an_official_checkpoint(tmp_path, shared):
    cut_to_half(tmp_path, shared / "weights" / "yolov5n.pt", classes=80)


@pytest.mark.parametrize("cfg", ["yolov7-tiny", TINY_REP])
def test_other_structures(tmp_path, cfg):
    torch.manual_seed(0)
    save_model(randomised(build_model(cfg, nc=3)), tmp_path / "base.pt")
    cut_to_half(tmp_path, tmp_path / "base.pt", classes=3)

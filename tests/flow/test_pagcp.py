"""prune.py --method pagcp as a user runs it: search, state, cut, finetune; and again in the same
folder.
"""

import csv
import json
from pathlib import Path

import pytest
import torch

from models import build_model, load_model, save_model
from tests.flow.runs import run, same_weights, tiny_set
from tests.prune_toys import TINY_REP, randomised

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
    "--exist-ok",
    "--method",
    "pagcp",
]  # noqa: SIM905
SEARCH = "--speed-up 1.5 --initial-rate .1 --calib-batches 1 --topk .9 --finetune-epochs 1".split()  # noqa: SIM905
CUT = "runs/prune/exp/weights/pruned.pt"


def prune(folder: Path, *words: str) -> str:
    done = run("--weights", "base.pt", *COMMON, *SEARCH, *words, folder=folder, script="prune.py")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_search_cut_finetune_and_the_state_of_the_search(tmp_path):
    tiny_set(tmp_path)
    torch.manual_seed(0)
    save_model(randomised(build_model(TINY_REP | {"nc": 3})), tmp_path / "base.pt")
    text = prune(tmp_path, "--local")
    folder = tmp_path / "runs/prune/exp"
    assert (
        "tried on 4 training images" in text
        and "--local: has no effect with --method pagcp" in text
    )
    assert "begins anew" not in text and "tried before" not in text
    with (folder / "prune.csv").open() as file:
        rows = list(csv.DictReader(file))
    base, cut = load_model(tmp_path / "base.pt"), load_model(tmp_path / CUT)
    speed_up = base.info()["macs"] / cut.info()["macs"]
    assert speed_up >= 1.5 and float(rows[-1]["speed_up"]) == pytest.approx(speed_up, abs=1e-4)
    assert load_model(folder / "weights/best.pt").info()["macs"] == cut.info()["macs"]

    known = len(json.loads((folder / "pagcp_state.json").read_text())["losses"])
    (tmp_path / CUT).rename(tmp_path / "first.pt")
    text = prune(tmp_path, "--no-finetune")
    assert f"goes on, {known} cuts were tried before" in text and same_weights(
        tmp_path / CUT, tmp_path / "first.pt"
    )
    assert len(json.loads((folder / "pagcp_state.json").read_text())["losses"]) == known

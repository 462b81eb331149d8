"""prune.py with a target in time: both ratios are written, whatever this machine's clock says."""

import re
from pathlib import Path

import pytest

from models import build_model, save_model
from tests.flow.runs import tiny_set
from tests.flow.test_prune import COMMON, script

pytestmark = pytest.mark.flow
BOTH = re.compile(
    r"(\d\.\d\d)x fewer MACs, measured time [\d.]+ -> [\d.]+ ms, (\d\.\d\d)x ± \d\.\d\d \(median of"
    r" \d+\)"
)
QUICK = [
    "--weights",
    "base.pt",
    "--no-finetune",
    "--noplots",
    "--compensate",
    "recalibrate",
    "--recalibrate-batches",
    "1",
    "--latency-batch",
    "2",
    "--latency-seconds",
    ".1",
]  # noqa: SIM905


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("latency")
    tiny_set(path)
    save_model(build_model("yolov5n", nc=3), path / "base.pt")
    return path


def test_a_target_in_time_writes_both_ratios_and_what_it_was_measured_on(folder):
    done = script(
        "prune.py",
        *QUICK,
        *COMMON,
        "--target",
        "latency",
        "--speed-up",
        "1.1",
        "--allow-less",
        folder=folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = (folder / "runs/prune/exp/prune_report.md").read_text()
    log = (folder / "runs/prune/exp/log.txt").read_text()
    assert (
        "Target 1.1x in time: " in report
        and BOTH.search(report)
        and "batch 2 at 64 px, CPU, fp32, 1 threads" in report
    )
    assert re.search(r"cut 1: predicted \d\.\d\dx, measured .*; \d\.\d\dx fewer MACs", log)
    assert (folder / "runs/prune/exp/weights/pruned.pt").is_file()

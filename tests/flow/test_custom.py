"""Structures that are not stock ones go all the way: train.py, then prune.py with a teacher in its
finetune, then val.py.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import Model, load_model
from prune_methods.surgery.cut import largest_difference
from tests.flow.runs import TINY, run, tiny_set
from tests.flow.test_prune import BASE, COMMON
from tests.flow.test_prune_sources import QUICK
from utils.profiling import count_parameters

pytestmark = pytest.mark.flow
HEAD = {"makes the output of the model": 3}
CUSTOM: dict[str, tuple[set[str], dict[str, int]]] = {
    "yolov5n-c3faster-repconv": ({"C3_Faster", "RepConv"}, HEAD),
    "yolov7-tiny-dcn-afpn": (
        {"DCNv2", "AFPN"},
        HEAD
        | {
            "its block (Offsets) keeps it whole: positions and weights of the taps, as many as "
            "the kernel has": (2),
            "its block (ASFF) keeps it whole: one weight for each level": 5,
        },
    ),
}
"""A v5-based and a v7-based YAML: its own blocks, and how many layers stay whole for which reason.
"""
TEACHER = (
    f"--method lamp --speed-up 2.0 --finetune-epochs 1 --teacher {BASE} --feature-loss cwd"
    " --logit-loss ast".split()
)


@pytest.fixture(scope="module", params=CUSTOM)
def done(request, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A YAML, and a folder with a training, a pruning and a validation run of it."""
    cfg, folder = request.param, tmp_path_factory.mktemp("custom")
    tiny_set(folder)
    best = "runs/prune/exp/weights/best.pt"
    for script, *words in (
        ("train.py", "--cfg", cfg, *TINY[2:-1], "1", "--data", "tiny.yaml"),
        ("prune.py", "--weights", BASE, "--data", "tiny.yaml", *TEACHER, *QUICK),
        ("val.py", "--weights", best, *COMMON, "--noplots"),
    ):
        ran = run(*words, folder=folder, script=script)
        assert ran.returncode == 0, f"{script}: {ran.stderr[-2000:]}"
    yield cfg, folder


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "runs/prune/exp" / name).open() as file:
        return list(csv.DictReader(file))


def sizes(model: Model, blocks: set[str]) -> Counter[str]:
    """Parameters of all rows of each kind."""
    total: Counter[str] = Counter()
    for row in model.rows:
        if row.block in blocks:
            total[row.block] += count_parameters(row.module)
    return total


def test_cut_to_half_finetuned_under_its_teacher_and_validated(done):
    cfg, folder = done
    blocks, whole = CUSTOM[cfg]
    base, best = load_model(folder / BASE), load_model(folder / "runs/prune/exp/weights/best.pt")
    assert {row.block for row in base.rows} > blocks and [row.block for row in best.rows] == [
        row.block for row in base.rows
    ]
    assert 2.0 <= base.info()["macs"] / best.info()["macs"] < 2.1
    before, after = sizes(base, blocks), sizes(best, blocks)
    assert all(0 < after[block] < before[block] for block in blocks), (
        before,
        after,
    )  # its own blocks were cut, too
    assert largest_difference(best.fuse(), best, 64) < 1e-4

    (epoch,) = rows(folder, "finetune/results.csv")
    assert float(epoch["train/kd_feature"]) > 0 and float(epoch["train/kd_logit"]) > 0
    assert Counter(row["reason"] for row in rows(folder, "skipped.csv")) == whole

    results = json.loads((folder / "runs/val/exp/results.json").read_text())
    assert (results["images"], results["instances"]) == (4, 8) and 0 <= results["metrics"][
        "mAP50"
    ] <= 1

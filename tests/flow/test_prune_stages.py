"""One command for sparse training, cut and finetune; and what is left of it when it is
interrupted.
"""

import csv
import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from recipes.prune.compensation import FRESH_BASE
from tests.flow.runs import TINY, run, same_weights, start, tiny_set

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
    "--repair-steps",
    "2",
    "--latency-seconds",
    "0",
]  # noqa: SIM905
BASE = "runs/train/exp/weights/best.pt"
SPARSE = (
    "--weights",
    BASE,
    "--method",
    "slim",
    "--speed-up",
    "1.5",
    "--sparse-epochs",
    "2",
    "--finetune-epochs",
    "2",
    *COMMON,
)


def prune(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run(*words, folder=folder, script="prune.py")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a base model and one uninterrupted run of all stages."""
    folder = tmp_path_factory.mktemp("stages")
    tiny_set(folder)
    done = run(*TINY[:-1], "1", "--data", "tiny.yaml", folder=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    done = prune(*SPARSE, folder=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "was not sparse-trained" not in done.stdout + done.stderr
    return folder


def stages(run_folder: Path) -> list[str]:
    return [
        row["stage"] for row in json.loads((run_folder / "prune_report.json").read_text())["stages"]
    ]


def test_one_command_trains_sparsely_cuts_and_finetunes(whole):
    folder = whole / "runs" / "prune" / "exp"
    # no gamma is near 0 after a dozen steps, so there is no constant to fold
    assert [stage for stage in stages(folder) if stage != FRESH_BASE] == [
        "base",
        "after sparse training",
        "after the cut",
        "after BN recalibration",
        "after reconstruction",
        "after repair",
        "after finetune",
    ]
    with (folder / "sparse" / "results.csv").open() as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 2 and float(rows[0]["sparse/reg"]) > float(rows[1]["sparse/reg"]) > 0
    assert (folder / "sparse" / "bn" / "stats.csv").is_file()


def interrupt(folder: Path, name: str) -> Path:
    """A copy of the whole run as it was on disk when its finetune had done one epoch of two."""
    source, copy = folder / "runs" / "prune" / "exp", folder / "runs" / "prune" / name
    shutil.copytree(source, copy)
    report = json.loads((copy / "prune_report.json").read_text())
    report["stages"] = report["stages"][:-1]
    (copy / "prune_report.json").write_text(json.dumps(report))
    (copy / "weights" / "best.pt").unlink()
    shutil.rmtree(copy / "finetune")
    return copy


def test_resume_finetunes_what_was_cut(whole):
    """The finetune had not begun: it is that of the uninterrupted run, bit for bit, and the report
    is complete.
    """
    copy = interrupt(whole, "cut-only")
    done = prune("--resume", str(copy), folder=whole)
    assert done.returncode == 0, done.stderr[-2000:]
    assert same_weights(copy / "weights" / "best.pt", whole / "runs/prune/exp/weights/best.pt")
    assert stages(copy) == stages(whole / "runs/prune/exp")
    again = prune("--resume", str(copy), folder=whole)
    assert again.returncode == 0 and "this training is complete" in again.stdout + again.stderr
    assert stages(copy) == stages(whole / "runs/prune/exp")


def test_resume_before_the_cut_keeps_the_sparse_training(whole):
    """Killed during the search: the sparse training is taken as it is, the rest is done anew and
    comes out the same.
    """
    copy = interrupt(whole, "sparse-only")
    (copy / "prune_report.json").unlink()
    (copy / "weights" / "pruned.pt").unlink()
    before = (copy / "sparse" / "weights" / "last.pt").stat().st_mtime_ns
    done = prune("--resume", str(copy), folder=whole)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (copy / "sparse" / "weights" / "last.pt").stat().st_mtime_ns == before
    assert same_weights(copy / "weights" / "pruned.pt", whole / "runs/prune/exp/weights/pruned.pt")
    assert same_weights(copy / "weights" / "best.pt", whole / "runs/prune/exp/weights/best.pt")


@pytest.mark.parametrize(
    ("gone", "phase"),
    [
        (("prune_report.json", "sparse"), "Sparse training with slim"),
        (("prune_report.json",), "Pruning with slim"),
        ((), "Finetuning for 2 epochs"),
    ],
)
def test_an_interrupt_in_any_stage_ends_with_how_to_go_on(whole, gone, phase):
    copy = interrupt(whole, f"stopped-{len(gone)}")
    for name in gone:
        shutil.rmtree(copy / name) if name == "sparse" else (copy / name).unlink()
    running = start("--resume", copy, folder=whole, script="prune.py")
    assert running.stdout
    for line in running.stdout:
        if line.startswith(phase):
            running.send_signal(signal.SIGINT)
            break
    rest = running.stdout.read()
    assert running.wait(60) == 130
    assert rest.splitlines()[-1] == f"SIGINT: go on with: python prune.py --resume {copy}"


def test_sparse_training_leaves_gammas_smaller_than_they_were(whole):
    gammas = []
    for path in (BASE, "runs/prune/exp/sparse/weights/last.pt"):
        state = torch.load(whole / path, weights_only=True)["state_dict"]
        gammas.append(
            torch.cat([v.abs() for k, v in state.items() if k.endswith("bn.weight")]).mean().item()
        )
    assert gammas[1] < gammas[0] - 0.001  # a dozen steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--resume", "runs/train/exp"), "--resume runs/train/exp: is no run of prune.py"),
        (("--resume", "nowhere"), "--resume nowhere: has no opt.yaml of prune.py"),
        (
            ("--weights", BASE, "--sparse-epochs", "2", *COMMON),
            "--sparse-epochs: group_fisher has no penalty to train with",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(whole, words, message):
    done = prune(*words, folder=whole)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr

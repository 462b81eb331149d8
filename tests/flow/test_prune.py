"""prune.py as a user runs it: cut, files, finetune, and the pruned model in the other scripts."""

import csv
import subprocess
from pathlib import Path

import pytest
import torch

from models import load_model
from recipes.prune.compensation import FRESH_BASE
from tests.flow.runs import TINY, run, tiny_set

pytestmark = pytest.mark.flow
FILES = """
    opt.yaml log.txt preflight.csv skipped.csv prune.csv channels.csv channels.png
    prune_report.md prune_report.json reconstruction.csv
    weights/pruned.pt weights/best.pt
    finetune/opt.yaml finetune/hyp.yaml finetune/results.csv
    finetune/weights/best.pt finetune/weights/last.pt
""".split()  # noqa: SIM905
COMMON = "--data tiny.yaml --imgsz 64 --batch-size 4 --workers 0 --device cpu".split()  # noqa: SIM905
BASE = "runs/train/exp/weights/best.pt"


def script(name: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run(*words, folder=folder, script=name)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Path:
    """A folder with a base model and one pruning run with finetune."""
    folder = tmp_path_factory.mktemp("prune")
    tiny_set(folder)
    done = run(*TINY[:-1], "1", "--data", "tiny.yaml", folder=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    words = (
        "--weights",
        BASE,
        *COMMON,
        "--finetune-epochs",
        "1",
        "--val-every",
        "60",
        "--repair-steps",
        "4",
    )
    done = script("prune.py", *words, folder=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_run_folder_is_complete(pruned):
    folder = pruned / "runs" / "prune" / "exp"
    assert [name for name in FILES if not (folder / name).is_file()] == []
    with (folder / "prune.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["speed_up"]) >= 2.0 > float(rows[-2]["speed_up"])
    assert [row["step"] for row in rows if row["mAP_0.5"]] == ["60"]
    stages = [
        line.split("|")[1].strip()
        for line in (folder / "prune_report.md").read_text().splitlines()
        if line.count("|") > 5
    ]
    assert [s for s in stages[2:] if s != FRESH_BASE] == [
        "base",
        "after the cut",
        "after BN recalibration",
        "after reconstruction",
        "after repair",
        "after finetune",
    ]
    assert "x fewer MACs, measured time " in (folder / "prune_report.md").read_text()
    text = (pruned / "stdout.txt").read_text()
    assert "After the cut" in text and "Results saved to runs/prune/exp" in text


def test_half_the_macs_and_the_same_structure_after_finetune(pruned):
    base = load_model(pruned / BASE)
    cut, best = (
        load_model(pruned / "runs/prune/exp/weights" / f"{name}.pt") for name in ("pruned", "best")
    )
    assert 2.0 <= base.info()["macs"] / cut.info()["macs"] < 2.05
    assert [p.shape for p in cut.parameters()] == [p.shape for p in best.parameters()]
    assert any(
        not torch.equal(a, b) for a, b in zip(cut.parameters(), best.parameters(), strict=True)
    )
    assert best.names == base.names


def test_pruned_checkpoints_go_through_every_script(pruned):
    best = "runs/prune/exp/weights/best.pt"
    done = script("val.py", "--weights", best, *COMMON, "--noplots", folder=pruned)
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(
        *TINY[2:-1], "1", "--weights", best, "--data", "tiny.yaml", "--name", "on", folder=pruned
    )
    assert done.returncode == 0, done.stderr[-2000:]
    words = (
        "--weights",
        best,
        *COMMON,
        "--speed-up",
        "1.3",
        "--method",
        "l1",
        "--no-finetune",
        "--noplots",
        "--compensate",
        "none",
        "--name",
        "again",
    )
    done = script("prune.py", *words, folder=pruned)
    assert done.returncode == 0, done.stderr[-2000:]
    twice = load_model(pruned / "runs/prune/again/weights/pruned.pt")
    assert load_model(pruned / best).info()["macs"] / twice.info()["macs"] >= 1.3
    assert (
        not (pruned / "runs/prune/again/finetune").exists()
        and not (pruned / "runs/prune/again/channels.png").exists()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speed-up", "500"], "cannot be reached, the limits allow"),
        (["--sped-up", "2"], "did you mean '--speed-up'"),
    ],
)
def test_what_the_user_can_mend_is_one_line(pruned, words, message):
    done = script("prune.py", "--weights", BASE, *COMMON, "--name", "wrong", *words, folder=pruned)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (pruned / "runs/prune/wrong").exists()


def test_dry_run_and_allow_less(pruned):
    done = script("prune.py", "--weights", BASE, "--dry-run", folder=pruned)
    assert done.returncode == 0 and "Reachable speed-up within the limits" in done.stdout
    lines = done.stdout.splitlines()
    assert any(
        line.startswith("model.24.m.0 ") and line.endswith("makes the output of the model")
        for line in lines
    )
    assert max(map(len, lines)) <= 140
    assert any(
        line.startswith("model.0.bn ") and "goes with model.0.conv" in line for line in lines
    )
    words = (
        "--weights",
        BASE,
        *COMMON,
        "--max-ratio",
        ".2",
        "--allow-less",
        "--no-finetune",
        "--compensate",
        "recalibrate",
        "--name",
        "less",
        "--noplots",
    )
    done = script("prune.py", *words, folder=pruned)
    assert done.returncode == 0 and "was not met" in done.stdout
    assert "NOT met" in (pruned / "runs/prune/less/prune_report.md").read_text()

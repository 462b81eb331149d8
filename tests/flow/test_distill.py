"""distill.py as a user runs it, and the other scripts with a teacher.

What needs no process of its own runs in this one.
"""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from models import build_model, load_model, save_model
from recipes.distill import distill
from recipes.prune.run import prune
from recipes.train_sparse import train_sparse
from tests.conftest import ROOT
from tests.flow.runs import TINY, command, environment, same_weights, tiny_set
from tests.flow.test_ddp import torchrun
from utils.engine import run_hooks
from utils.errors import UserError
from utils.options.base import parse_options
from utils.options.distill import DistillOptions
from utils.options.prune import PruneOptions
from utils.options.sparse import SparseOptions

pytestmark = pytest.mark.flow
COMMON = [*TINY[4:-1], "2", "--data", "tiny.yaml", "--teacher", "teacher.pt"]
"""Two epochs, in which the student is yet to be named."""
HYP = ["--hyp", "demo"]
NEW = ["--cfg", "student.yaml", *HYP]
EVERY_KIND = [
    "--feature-loss",
    "cwd",
    "mgd",
    "--feature-weight",
    ".5",
    ".1",
    "--logit-loss",
    "ast",
    "--kd-schedule",
    "linear",
]  # noqa: SIM905

SAME_EVERYWHERE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from recipes.distill import distill
from utils.engine import dist
from utils.options.distill import DistillOptions
from utils.options.base import parse_options
from utils.engine.trainer import Trainer
fit = Trainer.fit
def fit_and_compare(self):
    fit(self)
    for p in [*self.task.parameters(), *self.task.adapters.buffers()]:
        assert (dist.sum_over_ranks(p.detach().clone(), self.world) == 2 * p).all()
    assert len(list(self.task.features.parameters())) == 12
    assert all(adapter.kernel.abs().max() > 0 for adapter in self.task.adapters)
Trainer.fit = fit_and_compare
distill(parse_options(DistillOptions))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a data set, a teacher, a narrower student and one run of distill.py with every
    kind of loss.
    """
    folder = tmp_path_factory.mktemp("distill")
    tiny_set(folder)
    torch.manual_seed(0)
    teacher = build_model("yolov5n", nc=3)
    teacher.names = ["c0", "c1", "c2"]
    teacher.head.set_anchors(teacher.head.anchors_px + 1)
    save_model(teacher, folder / "teacher.pt")
    (folder / "student.yaml").write_text(yaml.safe_dump(teacher.cfg | {"width_multiple": 0.125}))
    words = command(*NEW, *COMMON, *EVERY_KIND, "--name", "whole", script="distill.py")
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "output.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def here(whole, monkeypatch) -> Path:
    """The same folder, as the working directory."""
    monkeypatch.chdir(whole)
    return whole


def test_columns_follow_the_schedule_and_the_diagnostics_speak(whole):
    with (whole / "runs/distill/whole/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    ours = [
        "train/kd_logit",
        "train/kd_feature",
        "train/raw_ast",
        "train/raw_cwd",
        "train/raw_mgd",
        "kd/factor",
    ]
    assert len(rows) == 2 and [name for name in rows[0] if name in ours] == ours
    factors = [1 - 0.99 * step / 6 for step in range(6)]  # 2 epochs of 3 batches, from 1 to .01
    assert [float(row["kd/factor"]) for row in rows] == pytest.approx(
        [factors[2], factors[5]], rel=1e-5
    )
    shares = [float(row["train/kd_logit"]) / float(row["train/raw_ast"]) for row in rows]
    assert 1 > shares[0] > factors[2] > shares[1] > factors[5]
    said = (whole / "output.txt").read_text()
    for line in (
        "Anchors: the student takes the teacher's, [[11, 14, 17, 31,",
        (
            "Pair: student 23 (128, 2, 2) - teacher 23 (256, 2, 2); adapter ClosedForm; trained"
            " beside: mgd Conv2d 256x256x3x3 + Conv2d"
        ),
        "Gradient of distillation reaches 177 of the student's 177 trained tensors",
        "of the loss over the first batches (cwd",
        "s a step with the teacher",
    ):
        assert line in said, line


def test_the_student_alone_is_saved_and_the_teacher_is_untouched(whole):
    best = whole / "runs/distill/whole/weights/best.pt"
    student, teacher = load_model(best), load_model(whole / "teacher.pt")
    assert torch.equal(student.head.anchors, teacher.head.anchors)
    content = torch.load(best, weights_only=True)
    assert (
        content["state_dict"].keys() == student.state_dict().keys() and "train_state" not in content
    )
    assert content["args"]["teacher"] == str(whole / "teacher.pt")
    torch.manual_seed(0)
    fresh = build_model("yolov5n", nc=3).state_dict()
    assert all(
        torch.equal(fresh[name], value)
        for name, value in teacher.state_dict().items()
        if "anchors" not in name
    )


def test_stopped_and_resumed_equals_uninterrupted(here, monkeypatch):
    write = run_hooks.Checkpoints.on_epoch_end

    def die(self, trainer):
        write(self, trainer)
        raise SystemExit(9)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(run_hooks.Checkpoints, "on_epoch_end", die)
        distill(parse_options(DistillOptions, [*NEW, *COMMON, *EVERY_KIND, "--name", "stopped"]))
    weights = here / "runs/distill/stopped/weights"
    state = torch.load(weights / "last.pt", weights_only=True)
    kept = {"features.mgd.2.generator.0.weight", "adapters.2.weight", "adapters.2.moments_xx"}
    assert state["epoch"] == 0 and kept <= state["train_state"]["task"].keys()
    assert not any("teacher" in name for name in state["train_state"]["task"])
    distill(parse_options(DistillOptions, ["--resume", str(weights / "last.pt")]))
    reference = here / "runs/distill/whole"
    assert all(
        same_weights(reference / "weights" / name, weights / name)
        for name in ("last.pt", "best.pt")
    )
    assert (reference / "results.csv").read_text() == (weights.parent / "results.csv").read_text()


def test_two_processes_share_the_adapters(whole):
    """Also after the teacher has gone, when adapters get no gradient of any loss: every rank ends
    with the same weights.
    """
    (whole / "compare.py").write_text(SAME_EVERYWHERE)
    done = torchrun(
        "compare.py", *NEW, *COMMON, *EVERY_KIND, "--kd-stop", ".6", "--name", "two", folder=whole
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with (whole / "runs/distill/two/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["kd/factor"]) > 0 for row in rows] == [True, False]


def test_prune_with_a_teacher_then_distil_what_is_left(here, capsys):
    """The teacher is the unpruned model itself."""
    words = ["--weights", "teacher.pt", *COMMON, "--feature-loss", "cwd", "--logit-loss", "l2"]
    words[words.index("--epochs")] = "--finetune-epochs"
    prune(
        parse_options(
            PruneOptions, [*words, *HYP, "--speed-up", "1.3", "--recalibrate-batches", "1"]
        )
    )
    out = capsys.readouterr().out
    assert "compared by cwd, l2" in out and out.count("adapter Kept") == 3
    finetune = here / "runs/prune/exp/finetune"
    assert "train/kd_logit,train/kd_feature" in (finetune / "results.csv").read_text()
    pruned = "runs/prune/exp/weights/pruned.pt"
    layers = ["--student-layers", "17,23", "--teacher-layers", "17,model.23"]
    words = [
        "--weights",
        pruned,
        *HYP,
        *COMMON,
        "--epochs",
        "1",
        "--feature-loss",
        "cwd",
        *layers,
        "--name",
        "pruned",
    ]
    distill(parse_options(DistillOptions, words))
    best = here / "runs/distill/pruned/weights/best.pt"
    shapes = [[p.shape for p in load_model(path).parameters()] for path in (here / pruned, best)]
    assert shapes[0] == shapes[1]


def test_sparse_training_takes_a_teacher(here):
    words = [
        "--weights",
        "teacher.pt",
        *HYP,
        *COMMON,
        "--epochs",
        "1",
        "--logit-loss",
        "l1",
        "--name",
        "taught",
    ]
    train_sparse(parse_options(SparseOptions, words))
    header = (here / "runs/sparse/taught/results.csv").read_text().splitlines()[0].split(",")
    assert {"train/kd_logit", "sparse/reg", "kd/factor"} <= set(header)


def test_the_package_of_the_same_name_runs_the_script(whole):
    words = [sys.executable, "-m", "distill", "--cfg", "yolov5n"]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (
        2,
        1,
    ) and "missing: a data set (--data demo)" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--feature-loss", "cwd", "--student-layers", "17", "--teacher-layers", "20"],
            "strides 8 and 16 px; pair layers of equal",
        ),
        (["--logit-loss", "l1", "--single-cls"], "the teacher's classes are 3, the student's 1"),
        (["--logit-loss", "l1", "--teacher", "none.pt"], "none.pt"),
    ],
)
def test_what_does_not_fit_makes_no_run(here, words, said):
    with pytest.raises(UserError, match=said):
        distill(parse_options(DistillOptions, [*NEW, *COMMON, *words, "--name", "wrong"]))
    assert not (here / "runs/distill/wrong").exists()

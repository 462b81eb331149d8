"""Run folders, device selection, training options and the hooks that write files."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from utils.engine.device import select_device
from utils.engine.dist import World, broadcast, world_from_env
from utils.engine.run_hooks import COLUMNS, Checkpoints, ResultsCsv, users_columns
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.base import parse_options, to_dict
from utils.options.train import TrainOptions
from utils.options.val import ValOptions
from utils.plots.results import plot_results
from utils.rundir import environment, latest_checkpoint, make_run_dir, save_options


def test_run_folders_are_numbered(tmp_path):
    made = [make_run_dir(tmp_path / "runs", "exp").name for _ in range(3)]
    assert made == ["exp", "exp2", "exp3"]
    assert make_run_dir(tmp_path / "runs", "exp", exist_ok=True).name == "exp"


def test_run_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        make_run_dir(tmp_path / "file" / "runs", "exp")
    with pytest.raises(UserError, match="is a file"):
        make_run_dir(tmp_path, "file", exist_ok=True)


def test_latest_checkpoint_is_the_youngest(tmp_path):
    with pytest.raises(UserError, match="no weights/last.pt below"):
        latest_checkpoint(tmp_path)
    for name, age in (("a", 5), ("b", 50), ("c", 20)):
        path = tmp_path / name / "weights" / "last.pt"
        path.parent.mkdir(parents=True)
        path.write_text("")
        os.utime(path, (time.time() - age,) * 2)
    assert latest_checkpoint(tmp_path).parts[-3] == "a"


def test_opt_yaml_records_what_made_the_run(tmp_path):
    save_options(
        TrainOptions(freeze=(1, 2)),
        tmp_path / "opt.yaml",
        **environment(torch.device("cpu")),
        data_hash="x",
    )
    saved = yaml.safe_load((tmp_path / "opt.yaml").read_text())
    assert saved["freeze"] == [1, 2] and saved["epochs"] == 100 and saved["data_hash"] == "x"
    assert saved["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert (
        saved["device"] == "cpu"
        and saved["threads"] == torch.get_num_threads()
        and saved["command"].startswith("python ")
    )


def test_select_device(monkeypatch):
    assert select_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert select_device("").type == "cpu"
    for asked in ("0", "cuda", "cuda:", "cuda:0", " CUDA ", "0,1", "gpu", "mps"):
        with pytest.raises(UserError, match="there is no GPU that torch can use"):
            select_device(asked)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert str(select_device("")) == "cuda:0" and str(select_device("cuda:2")) == "cuda:2"
    assert (
        str(select_device("1,3", local_rank=1)) == "cuda:3"
        and str(select_device("", local_rank=2)) == "cuda:2"
    )
    with pytest.raises(UserError, match="torchrun"):
        select_device("0,1")
    with pytest.raises(UserError, match="more processes"):
        select_device("0,1", local_rank=2)
    for asked in ("x", "\N{SUPERSCRIPT TWO}", "-1", "9" * 5000, "cuda:4"):
        with pytest.raises(UserError, match="there is no GPU '"):
            select_device(asked)
    assert str(select_device("cuda")) == "cuda:0"


def test_world(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert world_from_env() == World(0, None, 1) and broadcast({"a": 1}, World()) == {"a": 1}
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world_from_env() == World(3, 1, 4) and not world_from_env().main


def test_pasted_command_lines_parse():
    line = (
        "--img-size 640 320 --batch 4 --cache-images --notest --device 0 --local_rank 1 --freeze 10"
        " --cos-lr"
    )
    opt = parse_options(TrainOptions, line.split())
    assert (opt.imgsz, opt.val_imgsz, opt.batch_size, opt.cache, opt.noval) == (
        640,
        320,
        4,
        "ram",
        True,
    )
    assert opt.freeze == (10,) and opt.schedule == "cosine"
    line = (
        "--data coco.yaml --img 640 --batch 32 --conf 0.002 --iou 0.65 --device 0 --weights"
        " yolov7.pt --name yolov7_640_val"
    )
    val = parse_options(ValOptions, line.split())
    assert (val.imgsz, val.batch_size, val.conf_thres, val.iou_thres, val.name) == (
        640,
        32,
        0.002,
        0.65,
        "yolov7_640_val",
    )
    assert parse_options(TrainOptions, ["--resume"]).resume == "latest"
    assert parse_options(TrainOptions, ["--cache", "disk"]).cache == "disk"


def test_options_survive_the_checkpoint():
    opt = parse_options(
        TrainOptions, ["--img", "640", "320", "--freeze", "0", "1", "--cfg", "yolov5n"]
    )
    assert TrainOptions.from_dict(to_dict(opt)) == opt
    stored = [
        ({"imgsz": 64, "val_imgsz": 96}, (64, 96)),
        ({"imgsz": [64, 32]}, (64, 32)),
        ({"imgsz": [64]}, (64, 64)),
        ({"imgsz": [64, 32], "val_imgsz": 96}, (64, 96)),
        ({}, (640, 0)),
    ]
    for args, sizes in stored:
        old = TrainOptions.from_dict(args)
        assert (old.imgsz, old.val_imgsz) == sizes
    with pytest.raises(UserError, match="unknown option 'epoch'; did you mean 'epochs'"):
        TrainOptions.from_dict({"epoch": 3})


def test_options_given_in_vain_are_named_when_resuming(caplog):
    LOGGER.addHandler(caplog.handler)
    for line in (
        "--resume --device cpu",
        "--resume last.pt --epochs 300 --batch 8 --imgsz 640 --cos-lr",
    ):
        parse_options(TrainOptions, line.split()).check()
    LOGGER.removeHandler(caplog.handler)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "--epochs, --batch-size, --cos-lr: no effect with --resume"
    )


def test_contradicting_schedules():
    with pytest.raises(UserError, match="contradict"):
        _ = TrainOptions(cos_lr=True, linear_lr=True).schedule
    assert TrainOptions(lr_schedule="one-cycle").schedule == "one-cycle"


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['train.py']; import train; assert 'torch' not in sys.modules and"
        " 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


ROW = {
    "epoch": 0,
    "train/box": 1.0,
    "train/obj": 2.0,
    "train/cls": 3.0,
    "train/kd_logit": 4.0,
    "x/lr0": 0.1,
    "x/lr1": 0.2,
    "x/lr2": 0.2,
}
VALIDATED = {
    "metrics/precision": 0.5,
    "metrics/recall": 0.5,
    "metrics/mAP_0.5": 0.25,
    "metrics/mAP_0.5:0.95": 0.125,
}


def test_results_csv_has_the_known_columns_first_and_extras_after(tmp_path):
    trainer = SimpleNamespace(
        history=[ROW, ROW | VALIDATED | {"epoch": 1, "val/box": 7.0, "sparse/reg": 0.5}]
    )
    ResultsCsv(tmp_path / "results.csv").on_epoch_end(trainer)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*COLUMNS, "train/kd_logit", "sparse/reg"]
    assert (
        COLUMNS[1:4] == ("train/box_loss", "train/obj_loss", "train/cls_loss")
        and COLUMNS[-1] == "x/lr2"
    )
    assert (
        rows[0]["epoch"] == "0"
        and rows[0]["metrics/mAP_0.5"] == ""
        and rows[0]["train/kd_logit"] == "4"
    )
    assert rows[1]["val/box_loss"] == "7" and rows[1]["metrics/mAP_0.5:0.95"] == "0.125"


def test_results_plot_is_drawn(tmp_path):
    plot_results(
        [users_columns(ROW | VALIDATED | {"epoch": i}) for i in range(3)], tmp_path / "results.png"
    )
    assert (tmp_path / "results.png").stat().st_size > 10_000


def fake_trainer(tmp_path, epoch=0, best=True, model=None):
    model = model or nn.Linear(2, 2)
    common = {
        "skipped": 0,
        "stop": False,
        "epochs": 3,
        "history": [],
        "best_fitness": 0.5,
        "state_dict": lambda: {"raw": 1},
    }
    return SimpleNamespace(
        epoch=epoch, is_best=best, ema=SimpleNamespace(model=model), task=model, **common
    )


def test_checkpoints(tmp_path):
    written = []

    def save(path, model, **fields):
        written.append((path.name, "train_state" in fields, fields["epoch"]))
        path.write_text("")

    hook = Checkpoints(tmp_path, save, period=2)
    hook.on_epoch_end(fake_trainer(tmp_path, 0))
    hook.on_epoch_end(fake_trainer(tmp_path, 1, best=False))
    hook.on_fit_end(fake_trainer(tmp_path, 2))
    assert written == [
        ("best.pt", False, 0),
        ("last.pt", True, 0),
        ("epoch1.pt", False, 1),
        ("last.pt", True, 1),
        ("last.pt", False, 1),
    ]
    spoilt = nn.Linear(2, 2)
    spoilt.bias.data[0] = float("inf")
    hook.on_epoch_end(fake_trainer(tmp_path, 2, model=spoilt))
    assert len(written) == 5


def test_nosave_writes_after_the_last_epoch_only(tmp_path):
    written = []
    (tmp_path / "best.pt").write_text("of an earlier run in the same folder (--exist-ok)")
    hook = Checkpoints(
        tmp_path,
        lambda path, model, **fields: written.append((path.name, fields["epoch"])),
        every_epoch=False,
    )
    for epoch in range(3):
        hook.on_epoch_end(fake_trainer(tmp_path, epoch, best=epoch == 0))
    assert written == [("best.pt", 2), ("last.pt", 2)]

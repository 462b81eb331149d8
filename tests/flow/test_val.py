"""val.py as a user runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torchvision.ops import box_convert

from models import build_model, load_model
from models.checkpoint import save_checkpoint
from recipes.val import val
from tests.conftest import ROOT
from utils.errors import UserError
from utils.options.val import ValOptions
from utils.run_lock import LOCK_FILE

pytestmark = pytest.mark.flow
PICTURES = {"confusion_matrix.png", "PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png"}


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "val.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> tuple[Path, Path]:
    """An untrained three-class YOLOv5n that finds something everywhere, and five small photos of 96
    x 64.
    """
    folder = tmp_path_factory.mktemp("val")
    torch.manual_seed(0)
    model = build_model("yolov5n", nc=3)
    model.names = ["red", "green", "blue"]
    with torch.no_grad():
        for layer in model.head.m:
            layer.bias.zero_()
            layer.weight.mul_(10)
    save_checkpoint(folder / "best.pt", model)
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for i in range(5):
        Image.effect_noise((96, 64), 80).convert("RGB").save(folder / "images" / "val" / f"{i}.png")
        (folder / "labels" / "val" / f"{i}.txt").write_text(
            f"{i % 3} 0.5 0.5 0.4 0.5\n" if i else ""
        )
    content = {
        "path": str(folder),
        "train": "images/val",
        "val": "images/val",
        "names": model.names,
    }
    (folder / "set.yaml").write_text(yaml.safe_dump(content))
    return folder / "best.pt", folder / "set.yaml"


def test_command_line_writes_everything(setup, tmp_path):
    weights, data = setup
    words = (
        "--img-size",
        64,
        "--batch",
        2,
        "--workers=0",
        "--device",
        "cpu",
        "--verbose",
        "--save_txt",
        "--save-conf",
        "--save-json",
    )
    done = run(
        "--weights", weights, "--data", data, *words, "--project", tmp_path, "--name", "here"
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "here"
    assert re.search(r"Class +Images +Instances +P +R +mAP50 +mAP50-95\n +all +5 +4 ", done.stdout)
    assert re.search(r"\n +red +5 +1 .*\n +green +5 +2 .*\n +blue +5 +1 ", done.stdout)
    assert (
        "COCO metric" in done.stdout
        and "ms inference" in done.stdout
        and f"Results saved to {folder}" in done.stdout
    )
    names = {p.name for p in folder.iterdir()}
    batches = {f"val_batch{i}_{kind}.jpg" for i in range(3) for kind in ("labels", "pred")}
    assert names == PICTURES | batches | {
        LOCK_FILE,
        "labels",
        "log.txt",
        "opt.yaml",
        "results.json",
        "predictions.json",
    }

    results = json.loads((folder / "results.json").read_text())
    assert (results["images"], results["instances"], results["imgsz"]) == (5, 4, 64)
    assert (
        set(results["metrics"]) == {"P", "R", "mAP50", "mAP50-95", "fitness"}
        and 0 <= results["metrics"]["mAP50"] <= 1
    )
    assert len(results["per_class"]) == 3 and set(results["speed_ms"]) == {
        "pre",
        "inference",
        "nms",
    }
    assert yaml.safe_load((folder / "opt.yaml").read_text())["batch_size"] == 2

    records = json.loads((folder / "predictions.json").read_text())
    lines = (folder / "labels" / "3.txt").read_text().splitlines()
    mine = [r for r in records if r["image_id"] == 3]
    assert len(lines) == len(mine) > 0
    label, *place, confidence = map(float, lines[0].split())
    corners = box_convert(torch.tensor(place), "cxcywh", "xyxy")
    x1, y1, x2, y2 = (corners * torch.tensor([96.0, 64, 96, 64])).tolist()
    assert (int(label), mine[0]["bbox"]) == (
        mine[0]["category_id"],
        pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01),
    )
    assert confidence == pytest.approx(mine[0]["score"], abs=1e-4)


@pytest.mark.parametrize(
    "words", [(), ("--weights", "nowhere.pt", "--data", "nowhere.yaml"), ("--weihgts", "a.pt")]
)
def test_a_mistake_is_one_line_and_exit_code_2(words):
    done = run(*words)
    assert (
        done.returncode == 2
        and len(done.stderr.strip().splitlines()) == 1
        and "Traceback" not in done.stderr
    )


def options(weights: Path | str, data: Path, folder: Path, **more) -> ValOptions:
    common = {
        "imgsz": 64,
        "batch_size": 4,
        "workers": 0,
        "device": "cpu",
        "noplots": True,
        "project": str(folder),
    }
    return ValOptions(weights=str(weights), data=str(data), **(common | more))


def test_same_figures_whatever_the_batch_size_and_from_the_training_split(setup, tmp_path):
    first = val(options(*setup, tmp_path, batch_size=1))
    second = val(options(*setup, tmp_path, batch_size=1, task="train", workers=1))
    assert first.instances == second.instances == 4
    torch.testing.assert_close(torch.tensor(first.ap), torch.tensor(second.ap), rtol=0, atol=0)


def test_speed_task_measures_only(setup, tmp_path, caplog):
    result = val(options(*setup, tmp_path, task="speed"))
    assert result.coco is None and result.speed["inference"] > 0
    assert json.loads((tmp_path / "exp" / "results.json").read_text())["metrics"] is None
    assert not list((tmp_path / "exp").glob("*.png"))


def test_augment_and_single_class(setup, tmp_path):
    result = val(options(*setup, tmp_path, augment=True, single_cls=True))
    assert result.names == ["item"] and result.instances == 4


def test_bad_options_and_a_missing_split(setup, tmp_path):
    for wrong in ({"batch_size": 0}, {"conf_thres": 1.5}, {"task": "test"}, {"weights_": None}):
        more = {k: v for k, v in wrong.items() if k != "weights_"}
        weights, data = ("", setup[1]) if "weights_" in wrong else setup
        with pytest.raises(UserError):
            val(options(weights, data, tmp_path, **more))
    assert not list(tmp_path.iterdir())  # no run folder for a run that never began


def test_official_weights_with_80_classes_run_on_3_class_data(shared, tmp_path, capsys):
    weights, data = shared / "weights" / "yolov5n.pt", shared / "datasets" / "bccd" / "bccd.yaml"
    result = val(options(weights, data, tmp_path, imgsz=128, batch_size=32))
    assert (result.seen, result.instances) == (87, 1137) and result.map50 < 0.2
    text = capsys.readouterr().out
    assert "has 80 classes" in text and "has 3" in text
    assert load_model(weights).nc == 80

"""export.py as a user runs it, then val.py on its files; what is wrong is one line."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from models import build_model, save_model
from tests.flow.runs import run, tiny_set
from tests.prune_toys import randomised

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `best.pt`, a model that finds something everywhere, and `tiny.yaml`."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    data = tiny_set(folder)
    names = list(yaml.safe_load(data.read_text())["names"])
    model = randomised(build_model("yolov5n", nc=len(names))).train()
    model.names = [str(name) for name in names]
    with torch.no_grad():
        for layer in model.head.m:
            layer.bias.zero_()
    save_model(model, folder / "best.pt", args={"imgsz": 64, "data": str(data)})
    return folder


VAL = ["--data", "tiny.yaml", "--workers", "0", "--device", "cpu", "--noplots", "--batch", "3"]


def metrics(place: Path, weights: str, *more: str) -> tuple[dict, str]:
    done = run("--weights", weights, *VAL, "--name", weights, *more, folder=place, script="val.py")
    assert done.returncode == 0, done.stderr
    return json.loads((place / "runs/val" / weights / "results.json").read_text()), done.stdout


def test_the_map_of_an_exported_file_is_the_checkpoints(place: Path) -> None:
    words = ["--weights", "best.pt", "--include", "onnx", "--batch-size", "2"]
    done = run(*words, "--no-simplify", folder=place, script="export.py")
    assert done.returncode == 0, done.stderr
    row = re.search(r"^onnx +([\d.]+) +(\S+) +([\d.]+)  best.onnx$", done.stdout, re.M)
    assert row and float(row[1]) == pytest.approx(
        (place / "best.onnx").stat().st_size / 1e6, abs=0.1
    )
    assert float(row[2]) < 1e-3 and float(row[3]) > 0
    assert "Verified on 8 images of" in done.stdout and "tiny.yaml (val)" in done.stdout
    assert not list(place.glob(".*tmp*"))

    fixed, text = metrics(place, "best.onnx")
    assert "a file of one size: images are letterboxed into 64x64 px" in text
    done = run(
        *words,
        "--dynamic",
        "--no-simplify",
        "--output-dir",
        "dynamic",
        folder=place,
        script="export.py",
    )
    assert done.returncode == 0, done.stderr
    (place / "dynamic/best.onnx").rename(place / "dynamic.onnx")
    dynamic, _ = metrics(place, "dynamic.onnx")
    own, _ = metrics(place, "best.pt")
    for name in ("P", "R", "mAP50", "mAP50-95"):
        assert dynamic["metrics"][name] == pytest.approx(own["metrics"][name], abs=2e-3)
    assert (fixed["images"], fixed["imgsz"]) == (own["images"], 64)
    for words, message in (
        (("--imgsz", "96"), "takes images of 64x64 px only"),
        (("--augment",), "--augment: best.onnx gives boxes only"),
    ):
        done = run("--weights", "best.onnx", *VAL, *words, folder=place, script="val.py")
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--weights is missing"),
        (("--weights", "none.pt"), "none.pt: no such file"),
        (("--weights", "best.pt", "--include", "engine"), "--include engine: no such format"),
        (("--weights", "best.pt", "--int8"), "--int8: needs --data"),
        (("--weights", "best.pt", "--data", "none.yaml"), "none.yaml"),
        (("--weights", "best.pt", "--include", "torchscript", "--half"), "--half: the format"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    place: Path, words: tuple[str, ...], message: str
) -> None:
    before = sorted(place.iterdir())
    done = run(*words, folder=place, script="export.py")
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.strip().count("\n") == 0 and "Traceback" not in done.stderr
    assert sorted(place.iterdir()) == before

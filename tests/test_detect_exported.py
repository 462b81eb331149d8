"""detect.py with exported files: the same boxes as with the checkpoint that they come from."""

import csv
import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

from models import Model, build_model, save_model
from recipes.detect.run import detect
from recipes.export import export
from tests.faults.cases import TINY
from utils.errors import UserError
from utils.options.base import parse_options
from utils.options.detect import DetectOptions
from utils.options.export import ExportOptions

FILES = {
    "onnx": ("best.onnx", "onnxruntime"),
    "openvino": ("best_openvino_model", "openvino"),
    "torchscript": ("best.torchscript", "torch"),
}


def loud(model: Model) -> Model:
    """The model, finding something everywhere."""
    with torch.no_grad():
        for layer in model.head.m:
            layer.bias.zero_()
            layer.weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, its exports for any size, one for 64 x 64 px, and photos of three shapes."""
    place = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = loud(build_model(TINY))
    save_model(model, place / "best.pt", args={"imgsz": 64})
    save_model(model, place / "fixed.pt", args={"imgsz": 64})
    (place / "photos").mkdir()
    for name, size in (("wide", (96, 64)), ("tall", (40, 80)), ("square", (64, 64))):
        Image.effect_noise(size, 80).convert("RGB").save(place / "photos" / f"{name}.png")
    formats = [name for name, (_, library) in FILES.items() if importlib.util.find_spec(library)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.export.SECONDS", 0.0)
        words = ["--imgsz", "64", "--weights", str(place / "best.pt"), "--include", *formats]
        export(parse_options(ExportOptions, [*words, "--dynamic"]))
        if "onnx" in formats:
            words = ["--imgsz", "64", "--weights", str(place / "fixed.pt"), "--include", "onnx"]
            export(parse_options(ExportOptions, words))
    return place


def boxes(folder: Path, weights: str, *words: str) -> list[list[str]]:
    name = weights.replace(".", "-")
    options = ["--weights", str(folder / weights), "--source", str(folder / "photos")]
    options += ["--project", str(folder / "runs"), "--name", name, "--exist-ok", "--device", "cpu"]
    detect(parse_options(DetectOptions, [*options, "--save-csv", "--conf-thres", ".01", *words]))
    with (folder / "runs" / name / "predictions.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.parametrize("name", FILES)
def test_an_exported_file_finds_the_same(name: str, folder: Path):
    file, library = FILES[name]
    pytest.importorskip(library)
    expected, found = boxes(folder, "best.pt"), boxes(folder, file)
    assert len(expected) > 10

    def keyed(rows: list[list[str]]) -> list[tuple]:
        figures = [(row[0], row[2], *map(float, row[4:])) for row in rows]
        return sorted(figures, key=lambda row: (row[0], row[1], *map(round, row[3:])))

    by_checkpoint, by_file = keyed(expected), keyed(found)
    assert len(by_checkpoint) == len(by_file)
    for one, other in zip(by_checkpoint, by_file, strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], abs=1e-3)
        assert one[3:] == pytest.approx(other[3:], abs=0.2)


def test_a_file_of_one_size_takes_every_photo_and_refuses_another_size(folder: Path):
    pytest.importorskip("onnxruntime")
    found = boxes(folder, "fixed.onnx")
    assert {Path(row[0]).stem for row in found} == {"wide", "tall", "square"}
    square = [row[2:] for row in boxes(folder, "best.pt") if Path(row[0]).stem == "square"]
    assert len(square) == sum(Path(row[0]).stem == "square" for row in found)
    with pytest.raises(UserError, match="--imgsz 96: the file takes images of 64x64 px only"):
        boxes(folder, "fixed.onnx", "--imgsz", "96")
    with pytest.raises(UserError, match=r"--augment: .* needs a \.pt"):
        boxes(folder, "fixed.onnx", "--augment")


def test_a_half_written_file_is_one_line(folder: Path):
    pytest.importorskip("onnxruntime")
    whole = (folder / "best.onnx").read_bytes()
    (folder / "half.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.onnx"):
        boxes(folder, "half.onnx")

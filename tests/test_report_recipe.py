"""report.py's measuring: models are compared with the classes they were trained with."""

import json
from types import SimpleNamespace

import pytest
import torch

from data.config import load_data
from models import build_model, save_model
from recipes import report
from tests.flow.runs import tiny_set
from utils.errors import UserError
from utils.evaluator import evaluate
from utils.options.report import ReportOptions


def candidate(folder, nc: int) -> report.Candidate:
    model = build_model("yolov5n", nc=nc)
    save_model(model, folder / f"{nc}.pt")
    return report.Candidate("run", folder / f"{nc}.pt", str(tiny_set(folder)), 64)


def test_a_run_of_one_class_is_measured_as_one(tmp_path, monkeypatch):
    results = []
    monkeypatch.setattr(
        report,
        "evaluate",
        lambda *words, **more: results.append(evaluate(*words, **more)) or results[-1],
    )
    opt = SimpleNamespace(max_det=300, batch_size=4, workers=0, worker_timeout=0.0, seconds=0)
    candidates = [
        candidate(tmp_path, 1),
        candidate(tmp_path, len(load_data(tiny_set(tmp_path)).names)),
    ]
    report.measure_candidates(candidates, opt, torch.device("cpu"))
    one, several = results
    assert one.names == ["object"] and len(several.names) > 1
    assert one.labels.tolist() == [several.instances]


def test_other_classes_than_the_data_are_an_error(tmp_path):
    opt = SimpleNamespace(max_det=300, batch_size=4, workers=0, worker_timeout=0.0, seconds=0)
    with pytest.raises(UserError, match=r"80\.pt: has 80 classes, .*tiny\.yaml has 3"):
        report.measure_candidates([candidate(tmp_path, 80)], opt, torch.device("cpu"))


def test_half_on_the_cpu_is_said_to_be_float32(tmp_path):
    found = candidate(tmp_path, 3)
    sizes = {"imgsz": 64, "batch_size": 4, "workers": 0, "seconds": 0}
    opt = ReportOptions(
        runs=(str(found.weights),),
        data=found.data,
        device="cpu",
        half=True,
        project=str(tmp_path),
        **sizes,
    )
    folder = report.report(opt)
    assert json.loads((folder / "report.json").read_text())["conditions"]["precision"] == "fp32"


def test_a_timed_pass_follows_one_of_the_same_model(tmp_path, monkeypatch):
    """Else many models throw each other's kernels out of the cache, and the time is that of making
    them.
    """
    passes = []
    monkeypatch.setattr(report, "forward_of", lambda model, *_: lambda: passes.append(id(model)))
    opt = SimpleNamespace(max_det=300, batch_size=4, workers=0, worker_timeout=0.0, seconds=0)
    report.measure_candidates([candidate(tmp_path, 3)] * 2, opt, torch.device("cpu"))
    assert len(set(passes)) == 2 and passes[::2] == passes[1::2]


def test_one_data_set_by_two_names_is_the_same(tmp_path, monkeypatch):
    (tmp_path / "set.yaml").write_text("train: .")
    monkeypatch.chdir(tmp_path)
    names = ("set.yaml", "./set.yaml", str(tmp_path / "set.yaml"))
    assert {report._data_file(name) for name in names} == {tmp_path / "set.yaml"}
    assert report._data_file("demo") == report._data_file("demo.yaml") != report._data_file("bccd")
    assert report._data_file("gone") == "gone"

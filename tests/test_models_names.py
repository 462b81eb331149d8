"""Official parameter names, shapes and order of levels; names that users paste."""

from pathlib import Path

import pytest
import torch

from models import build_model
from utils.config import resolve


@pytest.mark.parametrize("name", ["yolov5n", "yolov7-tiny", "yolov7"])
def test_state_dict_equals_the_official_one(name: str, shared: Path) -> None:
    lines = (shared / "parameter_names" / f"{name}.txt").read_text().split("\n")
    official = [tuple(line.split()) for line in lines if line]
    kinds = {torch.float32: "float32", torch.int64: "int64"}
    ours = [
        (key, "x".join(map(str, tensor.shape)) or "scalar", kinds[tensor.dtype])
        for key, tensor in build_model(name).state_dict().items()
    ]
    assert sorted(ours) == sorted(official)


@pytest.mark.parametrize(
    ("pasted", "found"),
    [
        ("yolov5s", "yolov5s"),
        ("models/yolov5s.yaml", "yolov5s"),
        ("cfg/training/yolov7-tiny.yaml", "yolov7-tiny"),
        ("cfg/deploy/yolov7-tiny.yaml", "yolov7-tiny-deploy"),
        ("yolov7-tiny", "yolov7-tiny"),
        ("yolov7-tiny-deploy", "yolov7-tiny-deploy"),
        ("yolov7_tiny", "yolov7-tiny"),
    ],
)
def test_pasted_names_resolve(pasted: str, found: str) -> None:
    assert resolve(pasted, "model").stem == found


def test_training_and_deploy_form_differ_in_the_head_only() -> None:
    training, deploy = build_model("yolov7-tiny"), build_model("yolov7-tiny-deploy")
    assert training.rows[-1].block == "IDetect"
    assert deploy.rows[-1].block == "Detect"
    assert training.cfg["backbone"] == deploy.cfg["backbone"]
    assert training.cfg["head"][:-1] == deploy.cfg["head"][:-1]


def test_batch_norms_have_yolo_constants() -> None:
    norms = [m for m in build_model("yolov7-tiny").modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 55
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}

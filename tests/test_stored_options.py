"""Files of a run that someone has edited by hand: one line says which value is wrong."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.prune.report import REPORT_JSON, Report, StageRow
from recipes.prune.training import interrupted_run
from recipes.report import find_candidates
from tests.test_trainer import make_trainer
from utils.config import save_yaml
from utils.engine.run_hooks import EarlyStopping
from utils.errors import UserError
from utils.options.base import to_dict
from utils.options.prune import PruneOptions
from utils.options.train import TrainOptions


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("speed_up", "two", "speed_up: 'two' is no value of this option; a number"),
        ("speed_up", 0.5, "--speed-up 0.5: must be above 1"),
        ("speed_up", None, "speed_up: None"),
        ("imgsz", "64", "imgsz: '64' is no value of this option; a whole number"),
        ("imgsz", 10**7, "--imgsz 10000000: must be from 0 to 8192"),
        ("noplots", 3, "noplots: 3 is no value of this option; true or false"),
        ("ignore", [1, 2], "ignore: [1, 2] is no value of this option; a list of such: a text"),
        ("ignore", "model.0", "ignore: 'model.0'"),
        ("weights", ["a"], "weights: ['a'] is no value of this option; a text"),
        ("method", {"a": 1}, "method: {'a': 1}"),
        ("optimizer", "SGDD", "--optimizer 'SGDD': is not known"),
    ],
)
def test_an_edited_opt_yaml(tmp_path: Path, name: str, value: Any, said: str) -> None:
    save_yaml(to_dict(PruneOptions()) | {name: value, "command": "x"}, tmp_path / "opt.yaml")
    with pytest.raises(UserError) as error:
        interrupted_run(PruneOptions(resume=str(tmp_path)))
    assert f"{tmp_path / 'opt.yaml'}: {said}" in str(error.value)


def test_an_opt_yaml_as_it_was_written(tmp_path: Path) -> None:
    given = PruneOptions(weights="a.pt", ignore=("model.0", "head"), loss="ota", speed_up=3)
    save_yaml(to_dict(given) | {"command": "x"}, tmp_path / "opt.yaml")
    assert interrupted_run(PruneOptions(resume=str(tmp_path))) == (given, tmp_path)


def test_edited_args_of_a_checkpoint() -> None:
    stored = to_dict(TrainOptions(cfg="yolov5n", freeze=(1, 2)))
    assert TrainOptions.from_dict(stored).freeze == (1, 2)
    assert TrainOptions.from_dict(stored | {"imgsz": [64, 32]}).val_imgsz == 32
    for name, value in (("freeze", [1, "a"]), ("imgsz", []), ("epochs", 1.5), ("data", None)):
        with pytest.raises(UserError, match=f"args: {name}: "):
            TrainOptions.from_dict(stored | {name: value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "3",
        '{"imgsz": 64}',
        '{"imgsz": "a", "stages": [], "remarks": []}',
        '{"imgsz": 64, "stages": [3], "remarks": []}',
        '{"imgsz": 64, "stages": [{"stage": "base"}], "remarks": []}',
        '{"imgsz": 64, "stages": [], "remarks": 3}',
        "[" * 10**5,
        '{"imgsz": ' + "9" * 10**4 + ', "stages": [], "remarks": []}',
        "\ud7ff" * 10,
    ],
)
def test_an_edited_report(tmp_path: Path, text: str) -> None:
    (tmp_path / REPORT_JSON).write_text(text)
    with pytest.raises(UserError, match="damaged or edited") as error:
        Report.read(tmp_path)
    assert str(tmp_path / REPORT_JSON) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("macs", 0), ("macs", "x"), ("map", None)])
def test_an_edited_row_of_the_report(tmp_path: Path, key: str, value: Any) -> None:
    report = Report(64)
    report.rows = [StageRow("base", 1, 2.0, 3, 0.4, 0.5)]
    report.write(tmp_path)
    assert Report.read(tmp_path).rows == report.rows
    content = {"imgsz": 64, "stages": [asdict(report.rows[0]) | {key: value}], "remarks": []}
    (tmp_path / REPORT_JSON).write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged or edited"):
        Report.read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", "3"),
        ("step", None),
        ("stop", 1.5),
        ("best_fitness", "best"),
        ("ema_updates", [1]),
        ("history", [1]),
        ("history", 3),
        ("hooks", 3),
        ("hooks", [{"best_epoch": "x"}]),
        ("hooks", [{}]),
        ("task", {"a": 1}),
        ("task", []),
        ("ema", {}),
        ("optimizer", {}),
        ("optimizer", {"state": {}, "param_groups": [1]}),
    ],
)
def test_an_edited_train_state(key: str, value: Any) -> None:
    hooks = [EarlyStopping(3)]
    state = make_trainer(hooks=hooks).state_dict()
    make_trainer(hooks=hooks).load_state_dict(state)
    for edited in (state | {key: value}, {k: v for k, v in state.items() if k != key}):
        with pytest.raises(UserError, match="train_state is damaged or edited") as error:
            make_trainer(hooks=hooks).load_state_dict(edited)
        assert len(str(error.value)) < 400


def test_an_optimizer_state_of_another_shape() -> None:
    trainer = make_trainer(epochs=1)
    trainer.fit()
    state = trainer.state_dict()
    first = next(iter(state["optimizer"]["state"].values()))
    first["momentum_buffer"] = torch.zeros(7, 7)
    with pytest.raises(UserError, match="another shape than its parameter"):
        make_trainer(epochs=1).load_state_dict(state)


@pytest.mark.parametrize("imgsz", ["[64]", "large", "-3", "100000", "1.5"])
def test_report_of_a_run_with_an_edited_opt_yaml(tmp_path: Path, imgsz: str) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "best.pt").write_bytes(b"")
    (tmp_path / "opt.yaml").write_text(f"data: demo\nimgsz: {imgsz}\n")
    with pytest.raises(UserError, match="opt.yaml: imgsz: "):
        find_candidates(tmp_path)

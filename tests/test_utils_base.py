"""Registry, hyper-parameters, names of YAMLs, options: what every script stands on."""

import dataclasses
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from utils.config import Hyp, load_hyp, load_yaml, resolve
from utils.errors import UserError, suggest
from utils.hyp_ranges import RANGES
from utils.log import LOGGER, log_to_file, logging_to
from utils.options.base import option, parse_options, to_dict
from utils.registry import Registry, registered_names


def test_registry_finds_and_suggests():
    table = Registry("block")

    @table.register()
    class Conv: ...

    @table.register("nn.Upsample", "Up")
    class Upsample: ...

    assert table["Conv"] is Conv and table["Up"] is table["nn.Upsample"] is Upsample
    with pytest.raises(UserError, match=r"unknown block 'Covn'; did you mean 'Conv'\?"):
        table["Covn"]
    with pytest.raises(AssertionError, match="twice"):
        table.register("Conv")(Conv)


def test_names_are_read_from_source_without_import(tmp_path: Path):
    (tmp_path / "a.py").write_text(
        'raise SystemExit\n@PRUNERS.register("l1", "magnitude")\nclass A:'
        ' ...\n@PRUNERS.register()\ndef lamp(): ...\n@OTHER.register("x")\nclass B: ...\n'
    )
    assert registered_names(tmp_path, "PRUNERS") == ["l1", "magnitude", "lamp"]


def test_suggestions():
    assert suggest("Covn", ["Conv", "Detect"]) == "; did you mean 'Conv'?"
    assert suggest("zzz", ["Conv"]) == ""


@pytest.mark.parametrize(
    ("pasted", "found"),
    [
        ("scratch-low", "scratch-low.yaml"),
        ("hyp.scratch-low.yaml", "scratch-low.yaml"),
        ("data/hyps/hyp.scratch-high.yaml", "scratch-high.yaml"),
        ("data/hyp.scratch.p5.yaml", "scratch-p5.yaml"),
        ("hyp.scratch.tiny.yaml", "scratch-tiny.yaml"),
    ],
)
def test_pasted_hyp_names_resolve(pasted: str, found: str):
    assert resolve(pasted, "hyp").name == found


@pytest.mark.parametrize(
    ("pasted", "found"),
    [
        ("yolov5s", "yolov5s.yaml"),
        ("models/yolov5s.yaml", "yolov5s.yaml"),
        ("cfg/training/yolov7-tiny.yaml", "yolov7-tiny.yaml"),
        ("cfg/deploy/yolov7-tiny.yaml", "yolov7-tiny-deploy.yaml"),
        ("yolov7-tiny", "yolov7-tiny.yaml"),
        ("yolov7-tiny-deploy", "yolov7-tiny-deploy.yaml"),
        ("yolov7x", "yolov7x.yaml"),
    ],
)
def test_pasted_model_names_resolve(pasted: str, found: str):
    assert resolve(pasted, "model").name == found


def test_unknown_name_is_one_line_with_a_suggestion():
    with pytest.raises(
        UserError, match=r"model YAML 'yolov5q' not found; did you mean 'yolov5.'\?"
    ):
        resolve("yolov5q", "model")


def test_hyp_scaling_by_hand():
    hyp = Hyp(box=0.05, cls=0.5, obj=1.0).scaled(num_layers=4, num_classes=20, imgsz=320)
    assert hyp.box == pytest.approx(0.05 * 0.75)
    assert hyp.cls == pytest.approx(0.5 * 0.25 * 0.75)
    assert hyp.obj == pytest.approx(1.0 * 0.25 * 0.75)


def test_hyp_reads_what_users_write():
    assert load_hyp({"lr0": "1e-3"}).lr0 == 0.001  # YAML 1.1 reads 1e-3 as a string
    assert load_hyp({"loss_ota": 1}).loss == "ota"
    assert load_hyp({"loss_ota": 0}).loss == "yolo"
    assert load_hyp({"loss_ota": 1, "loss": "yolo"}).loss == "yolo"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr00": 0.1}, "unknown key 'lr00'; did you mean 'lr0'"),
        ({"lr0": "fast"}, "lr0: 'fast' is not a finite number"),
        ({"lr0": float("nan")}, "lr0: nan is not a finite number"),
        ({"nbs": 1.5}, "nbs: 1.5 is not a int"),
        ({"mosaic": 1.5}, "mosaic: 1.5 is out of range"),
        ({"loss": "otaa"}, "loss: 'otaa' is not known"),
        ({"lr0": 0}, "lr0: 0 is out of range: must be above 0 and at most 10"),
        ({"momentum": 2}, "momentum: 2 is out of range: must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1 is out of range: must be from 0 to 1"),
        ({"warmup_epochs": -1}, "warmup_epochs: -1 is out of range: must be at least 0"),
        ({"anchors": 0}, "hyp: anchors: 0 is out of range: must be from 1 to 100"),
        ({"anchor_t": 1}, "anchor_t: 1 is out of range: must be above 1"),
        ({"box": -0.05}, "box: -0.05 is out of range"),
        ({"close_mosaic": -1}, "close_mosaic: -1 is out of range"),
        ({"scale": 1}, "scale: 1 is out of range: must be at least 0 and below 1"),
    ],
)
def test_bad_hyp_is_named(given: dict, message: str):
    with pytest.raises(UserError, match=message):
        load_hyp(given)


def test_every_number_has_a_range():
    numbers = {f.name for f in dataclasses.fields(Hyp)} - {"loss", "autobalance"}
    assert set(RANGES) == numbers


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, -math.inf, "nan", "x", None, []])
def test_no_number_takes_nonsense(name: str, value: object):
    if (name, value) == ("anchors", None):
        assert load_hyp({name: value}).anchors is None
        return
    with pytest.raises(UserError, match=f"hyp: {name}: "):
        load_hyp({name: value})


@pytest.mark.parametrize("name", [name for name, r in RANGES.items() if r.most is not None])
def test_no_number_exceeds_its_range(name: str):
    most = RANGES[name].most
    assert most is not None
    with pytest.raises(UserError, match=f"hyp: {name}: .*out of range"):
        load_hyp({name: most * 1.5 + 1})


def test_bad_hyp_file_is_named(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("lr0: x\n")
    with pytest.raises(UserError, match="mine.yaml: lr0"):
        load_hyp(file)
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_hyp({}).lr0 = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: 2", r"x.yaml:2: broken YAML"),
        ("- 1\n", "found list"),
        ("", "found nothing"),
        ("a: !!python/name:os.system\n", "broken YAML"),
    ],
)
def test_broken_yaml_names_the_line(tmp_path: Path, text: str, message: str):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_yaml(file)


@dataclass(frozen=True)
class _Options:
    batch_size: int = option(16, "images a step", "batch")
    cache: str | None = option(None, "ram or disk", "cache-images", bare="ram")
    imgsz: tuple[int, ...] = option((640,), "image size", "img", multi=True)
    rect: bool = option(False, "rectangular batches")


def test_options_take_every_spelling():
    opt = parse_options(_Options, ["--batch_size", "4", "--cache", "--img", "320", "320", "--rect"])
    assert opt == _Options(batch_size=4, cache="ram", imgsz=(320, 320), rect=True)
    assert parse_options(_Options, ["--batch=8", "--cache-images=disk"]) == _Options(
        batch_size=8, cache="disk"
    )
    assert to_dict(opt)["imgsz"] == [320, 320]


@dataclass(frozen=True)
class _Positional:
    runs: tuple[str, ...] = option((), "runs", positional=True)
    seconds: float = option(1.0, "time")


def test_positional_words_become_a_tuple(capsys: pytest.CaptureFixture):
    assert parse_options(_Positional, ["a", "b_c", "--seconds", "2"]) == _Positional(
        runs=("a", "b_c"), seconds=2.0
    )
    with pytest.raises(SystemExit) as stop:
        parse_options(_Positional, [])
    assert stop.value.code == 2 and "RUN" in capsys.readouterr().err


def test_unknown_option_is_one_line_with_a_suggestion(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        parse_options(_Options, ["--bach-size", "4"])
    error = capsys.readouterr().err
    assert (
        stop.value.code == 2 and error.count("\n") == 1 and "did you mean '--batch-size'" in error
    )


def test_options_and_cli_do_not_import_torch():
    code = (
        "import sys, utils.options.base, utils.cli, utils.config, utils.registry, utils.errors;"
        " sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode
        == 0
    )


def test_lines_for_the_file_alone_are_not_on_the_console(tmp_path, capsys):
    with logging_to(tmp_path / "log.txt"):
        log_to_file("losses of an epoch")
        LOGGER.info("for both")
    assert (tmp_path / "log.txt").read_text() == "losses of an epoch\nfor both\n"
    assert "losses" not in capsys.readouterr().out

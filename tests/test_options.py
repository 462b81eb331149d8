"""Options of all scripts: their groups in the help, their ranges, one type for the image size."""

import dataclasses
import math
import re
import subprocess
import sys

import pytest

from demo import DemoOptions
from recipes.session import with_whole_strides
from tests.conftest import ROOT
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.base import Options, option, parse_options
from utils.options.check import CheckOptions
from utils.options.distill import DistillOptions
from utils.options.meta import GROUPS
from utils.options.parsing.parser import ABSENT, build_parser
from utils.options.prune import PruneOptions
from utils.options.report import ReportOptions
from utils.options.sparse import SparseOptions
from utils.options.train import TrainOptions
from utils.options.val import ValOptions

TRAIN = ["what", "training", "data", "teacher", "run"]
OF_SCRIPT = {
    PruneOptions: ["what", "target", "sparse", "search", "compensation", "finetune"]
    + ["teacher", "run"],
    TrainOptions: [name for name in TRAIN if name != "teacher"],
    SparseOptions: ["what", "sparse", *TRAIN[1:]],
    DistillOptions: TRAIN,
    ValOptions: ["what", "detection", "output", "run"],
    ReportOptions: ["what", "run"],
    CheckOptions: ["what", "search"],
    DemoOptions: ["run"],
}


@pytest.mark.parametrize("kind", OF_SCRIPT)
def test_the_help_of_a_script_has_its_groups_in_the_order_of_use(kind):
    text = build_parser(kind, "").format_help()
    headings = re.findall(r"(?m)^(\w+):\n  (.+)\n", text)
    assert [title for title, _ in headings if title != "options"] == OF_SCRIPT[kind]
    assert all(GROUPS[title] == says for title, says in headings if title != "options")
    without = [f.name for f in dataclasses.fields(kind) if "group" not in f.metadata]
    assert without == []


def test_the_common_options_of_prune_come_first():
    text = build_parser(PruneOptions, "").format_help().split("\noptions:")[1]
    flags = re.findall(r"(?m)^  --([\w-]+)", text)
    assert flags[:2] == ["weights", "data"] and flags.index("method") < flags.index("max-ratio")
    assert flags.index("speed-up") < flags.index("finetune-epochs") < flags.index("teacher")


def test_help_answers_without_torch():
    code = (
        "import sys\nfrom utils.options.prune import PruneOptions\n"
        "from utils.options.parsing.parser import build_parser\n"
        "build_parser(PruneOptions, '').format_help()\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@dataclasses.dataclass(frozen=True)
class _Numbers(Options):
    count: int = option(2, "whole number", least=1, most=9)
    share: float = option(0.5, "share", above=0, most=1)
    ratio: float = option(2.0, "ratio", above=1, hint="2 halves it")
    below: float = option(0.5, "open above", least=0, below=1)
    waits: tuple[float, ...] = option((), "several", multi=True, negative=False)
    free: float = option(0.0, "any number")
    maybe: int | None = option(None, "may be missing", least=3)
    kind: str = option("a", "a word", choices=("a", "b"))
    on: bool = option(False, "no number")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "--count 0: must be from 1 to 9"),
        ({"count": 10}, "--count 10: must be from 1 to 9"),
        ({"share": 0.0}, "--share 0: must be above 0 and at most 1"),
        ({"share": math.nan}, "--share nan: must be above 0 and at most 1"),
        ({"ratio": 1.0}, "--ratio 1: must be above 1 (2 halves it)"),
        ({"ratio": math.inf}, "--ratio inf: must be above 1 (2 halves it)"),
        ({"below": 1.0}, "--below 1: must be at least 0 and below 1"),
        ({"waits": (0.5, -1.0)}, "--waits 0.5 -1: must not be negative"),
        ({"free": math.nan}, "--free nan: must be a finite number"),
        ({"free": -math.inf}, "--free -inf: must be a finite number"),
        ({"maybe": 2}, "--maybe 2: must be at least 3"),
        ({"kind": "c"}, "--kind 'c': is not known (a, b)"),
    ],
)
def test_a_range_is_checked_in_code_and_on_the_command_line(given, message):
    with pytest.raises(UserError) as error:
        _Numbers(**given).check()
    assert str(error.value) == message
    if "kind" in given:
        return  # the parser refuses a wrong word by itself
    ((name, value),) = given.items()
    words = [str(v) for v in (value if isinstance(value, tuple) else (value,))]
    with pytest.raises(UserError) as error:
        parse_options(_Numbers, [f"--{name}", *words] if len(words) > 1 else [f"--{name}={value}"])
    assert str(error.value) == message


def test_values_on_the_bounds_pass():
    for given in ({"count": 1}, {"count": 9}, {"share": 1.0}, {"below": 0.0}, {"waits": (0.0,)}):
        _Numbers(**given).check()
    _Numbers(maybe=3, kind="b", on=True, free=-1e300).check()


GOOD = {"weights": "x.pt", "data": "demo"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PruneOptions(**GOOD, speed_up=1.0), "--speed-up 1: must be above 1 (2 halves the GFLOPs)"),
        (PruneOptions(**GOOD, max_ratio=1.5), "--max-ratio 1.5: must be above 0 and at most 1"),
        (PruneOptions(**GOOD, max_steps=0), "--max-steps 0: must be at least 1"),
        (PruneOptions(**GOOD, val_every=-1), "--val-every -1: must not be negative"),
        (PruneOptions(**GOOD, latency_seconds=math.inf), "--latency-seconds inf: must be at lea"),
        (
            PruneOptions(**GOOD, initial_rate=0.0),
            "--initial-rate 0: must be above 0 (.05 lets the first layer raise a loss by 5 %)",
        ),
        (TrainOptions(**GOOD, epochs=0), "--epochs 0: must be at least 1"),
        (TrainOptions(**GOOD, optimizer="sgd"), "--optimizer 'sgd': is not known (SGD, Adam, Ad"),
        (TrainOptions(resume="last.pt", workers=-1), "--workers -1: must be from 0 to 256"),
        (ValOptions(**GOOD, max_det=0), "--max-det 0: must be at least 1"),
        (ValOptions(**GOOD, iou_thres=math.nan), "--iou-thres nan: must be from 0 to 1"),
        (SparseOptions(**GOOD, delta_every=0), "--delta-every 0: must be at least 1"),
        (DistillOptions(**GOOD, kd_stop=2.0), "--kd-stop 2: must be from 0 to 1"),
        (ReportOptions(seconds=-1.0), "--seconds -1: must be at least 0"),
        (CheckOptions(imgsz=16), "--imgsz 16: must be from 32 to 8192"),
    ],
)
def test_options_made_in_code_are_checked(options, message):
    with pytest.raises(UserError) as error:
        options.check()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ("", (640, 0)),
        ("--imgsz 64", (64, 0)),
        ("--img-size 640 640", (640, 640)),
        ("--img 64 32", (64, 32)),
        ("--imgsz 64 --val-imgsz 32", (64, 32)),
    ],
)
def test_one_image_size_or_two(words, sizes):
    opt = parse_options(TrainOptions, words.split())
    assert (opt.imgsz, opt.val_imgsz) == sizes
    assert all(type(size) is int for size in sizes)


@pytest.mark.parametrize(
    ("given", "sizes", "warns"),
    [((64, 0), (64, 64), False), ((60, 0), (64, 64), True), ((64, 90), (64, 96), True)],
)
def test_image_sizes_are_rounded_up_to_whole_strides(given, sizes, warns, caplog):
    LOGGER.addHandler(caplog.handler)
    opt = with_whole_strides(TrainOptions(imgsz=given[0], val_imgsz=given[1]), 32)
    LOGGER.removeHandler(caplog.handler)
    assert (opt.imgsz, opt.val_imgsz) == sizes and bool(caplog.records) == warns


@pytest.mark.parametrize("word", list(ABSENT))
def test_options_of_others_that_do_not_exist_are_explained(word, capsys):
    with pytest.raises(SystemExit):
        parse_options(TrainOptions, [word])
    line = capsys.readouterr().err
    assert f"unknown option {word}; {ABSENT[word]}" in line and "did you mean" not in line


def test_adam_is_yolov7s_spelling_of_the_optimizer():
    assert parse_options(TrainOptions, ["--adam"]).optimizer_name == "Adam"
    assert parse_options(TrainOptions, ["--optimizer", "AdamW"]).optimizer_name == "AdamW"
    with pytest.raises(UserError, match="contradict each other"):
        _ = TrainOptions(adam=True, optimizer="AdamW").optimizer_name

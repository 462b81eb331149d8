"""Fuzzers: whatever a YAML, a command line or a checkpoint holds, only a `UserError` comes out.

    FAULT_EXAMPLES=10000 python -m pytest tests/faults/test_fuzz.py

CI tries a few hundred of each.
"""

import copy
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config import KNOWN_KEYS, SPLITS, load_data
from models import build_model, load_model, save_model
from models.keys import KEYS
from models.registry import BLOCKS
from utils.config import Hyp, load_hyp, load_yaml
from utils.errors import UserError
from utils.options.base import parse_options
from utils.options.check import CheckOptions
from utils.options.distill import DistillOptions
from utils.options.prune import PruneOptions
from utils.options.report import ReportOptions
from utils.options.sparse import SparseOptions
from utils.options.train import TrainOptions
from utils.options.val import ValOptions

EXAMPLES = int(os.environ.get("FAULT_EXAMPLES", "200"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 1000,  # the same in every run of CI
    suppress_health_check=list(HealthCheck),
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.sampled_from([10**9, 2**31, 2**63, 10**19, -(2**63)]),
    st.floats(),
    st.sampled_from(
        [0.5, 1e-3, 1e300, "1e-3", "", "a", "None", "nc", "anchors", "None", "-1", "x/y"]
    ),
    st.text(max_size=12),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)

TINY: dict[str, Any] = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 2, "C3", [8]]],
    "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
}
NAMES = [name for name in BLOCKS.names() if not getattr(BLOCKS[name], "is_head", False)]


def only_user_errors(work: Callable[[], object]) -> None:
    """Do the work; a `UserError` must be short and in one line when it is printed."""
    try:
        work()
    except UserError as error:
        assert str(error).strip() and len(str(error)) < 6000


@pytest.fixture(scope="module", autouse=True)
def folder() -> Any:
    """A working directory of its own, with an image folder of one file."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for split in ("train", "val"):
            Path(f"set/images/{split}").mkdir(parents=True)
            Path(f"set/images/{split}/a.jpg").write_bytes(b"no image")
        yield Path(name)
        os.chdir(before)


def written(content: Any) -> str:
    """Write a YAML; what cannot be dumped is written as its `repr`."""
    try:
        text = yaml.safe_dump(content, allow_unicode=True)
        Path("fuzz.yaml").write_text(text, encoding="utf-8")
    except (yaml.YAMLError, UnicodeEncodeError, ValueError):
        Path("fuzz.yaml").write_text(ascii(content))
    return "fuzz.yaml"


@fuzzed
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin1")))
def test_yaml_text(text: str) -> None:
    Path("text.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    only_user_errors(lambda: load_yaml("text.yaml"))


YAML_PIECES = [
    "a: ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!!float ",
    "!!bool ",
]
YAML_PIECES += [
    "!!timestamp ",
    "!!binary ",
    "!!set ",
    "!!omap ",
    "!!pairs ",
    "? ",
    "| ",
    "> ",
    "=",
    "~",
]
YAML_PIECES += [
    "\n",
    "\n  ",
    "2024-13-45",
    "0x",
    "0b",
    "1_",
    "190:20:30",
    "'",
    '"',
    "\\x",
    "#",
    "---",
    "%",
]


@fuzzed
@given(st.lists(st.sampled_from(YAML_PIECES) | st.text(max_size=3), max_size=14))
def test_yaml_pieces(pieces: list[str]) -> None:
    Path("text.yaml").write_bytes("".join(pieces).encode("utf-8", "surrogatepass"))
    only_user_errors(lambda: load_yaml("text.yaml"))


@fuzzed
@given(st.dictionaries(st.sampled_from([*KNOWN_KEYS, "odd"]), VALUES, max_size=4), st.booleans())
def test_data_yaml(changes: dict[str, Any], from_file: bool) -> None:
    content: dict[Any, Any] = {"path": "set", "train": "images/train", "val": "images/val"}
    content |= {"names": ["a", "b"]} | changes
    if changes.get("generator") in ("demo", "demo-large"):
        return

    def work() -> None:
        data = load_data(written(content) if from_file else content)
        for split in SPLITS:
            if getattr(data, split):
                data.images(split)

    only_user_errors(work)


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from([*(f.name for f in dataclasses.fields(Hyp)), "loss_ota", "odd"]),
        VALUES,
        max_size=6,
    )
)
def test_hyp(values: dict[str, Any]) -> None:
    only_user_errors(lambda: load_hyp(dict(values)).scaled())
    only_user_errors(lambda: load_hyp(written(values)))


ROWS = st.tuples(
    st.sampled_from([-1, 0, 1, [-1], [-1, 0], [0, 1]]) | VALUES,
    st.integers(1, 3) | VALUES,
    st.sampled_from(NAMES) | VALUES,
    st.lists(st.integers(1, 16) | VALUES, max_size=5) | VALUES,
).map(list)


@fuzzed
@given(
    st.dictionaries(st.sampled_from([*KEYS, "odd"]), VALUES, max_size=2),
    st.lists(ROWS, max_size=2),
)
def test_model_yaml(changes: dict[str, Any], rows: list[Any]) -> None:
    cfg = copy.deepcopy(TINY) | changes
    if isinstance(cfg["backbone"], list):
        cfg["backbone"] = [*cfg["backbone"], *rows]

    def work() -> None:
        model = build_model(cfg)
        if sum(p.numel() for p in model.parameters()) < 10**6:
            model.fuse()

    only_user_errors(work)


SCRIPTS = [TrainOptions, ValOptions, PruneOptions, ReportOptions, CheckOptions]
SCRIPTS += [DistillOptions, SparseOptions]
FLAGS = sorted(
    {f"--{f.name.replace('_', '-')}" for kind in SCRIPTS for f in dataclasses.fields(kind)}
)
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(
        ["", "-1", "0", "1", "0.5", "nan", "inf", "1e400", "9" * 400, "--", "-", "a=b"]
    ),
    st.text(max_size=8),
)


@fuzzed
@given(st.sampled_from(SCRIPTS), st.lists(WORDS, max_size=6))
def test_options(kind: Any, words: list[str]) -> None:
    def work() -> None:
        try:
            parse_options(kind, words).check()
        except SystemExit as stop:  # argparse: one line, or --help
            assert stop.code in {0, 2}

    only_user_errors(work)


@pytest.fixture(scope="module")
def good(folder: Path) -> Path:
    hyp, args = {"lr0": 0.1}, {"imgsz": 64}
    save_model(build_model(TINY), folder / "good.pt", hyp=hyp, args=args, history=[{"epoch": 0}])
    return folder / "good.pt"


def changed_at(value: Any, path: list[int], new: Any) -> Any:
    """Return a copy of nested mappings and lists whose item at a path of numbers is another one."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    result = type(value)(value)
    result[key] = changed_at(value[key], path[1:], new)
    return result


TENSORS = st.sampled_from([(0,), (1,), (8,), (8, 3, 3, 3), (3, 8)]).map(torch.zeros)


@fuzzed
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), VALUES | TENSORS)
def test_checkpoint_fields(good: Path, path: list[int], new: Any) -> None:
    content = torch.load(good, weights_only=True)
    torch.save(changed_at(content, path, new), "fuzz.pt")
    only_user_errors(lambda: load_model("fuzz.pt").fuse())


@fuzzed
@given(st.integers(0), st.binary(min_size=1, max_size=8), st.booleans())
def test_checkpoint_bytes(good: Path, place: int, new: bytes, cut: bool) -> None:
    data = good.read_bytes()
    at = place % len(data)
    Path("fuzz.pt").write_bytes(data[:at] + (b"" if cut else new + data[at + len(new) :]))
    only_user_errors(lambda: load_model("fuzz.pt"))

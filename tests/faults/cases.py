"""The cases of the fault harness: kinds x cases, each a small spoiling of a good working folder."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from models import build_model, save_model
from tests.data_sets import write_set
from utils.config import save_yaml
from utils.options.base import to_dict
from utils.options.prune import PruneOptions

TINY: dict[str, Any] = {
    "nc": 3,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]],
    "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
}
RUN = ("--imgsz", "64", "--workers", "0", "--device", "cpu", "--noplots")
TRAIN = ("train.py", "--epochs", "1", "--batch-size", "2", *RUN, "--data", "set.yaml")
VAL = ("val.py", "--data", "set.yaml", "--weights", "good.pt", *RUN)
PRUNE = ("prune.py", "--data", "set.yaml", "--weights", "good.pt", "--no-finetune", *RUN)
DETECT = ("detect.py", "--weights", "good.pt", "--device", "cpu")
CHECK = ("check.py", "net.yaml", "--no-prune", "--imgsz", "64")

CLEAR, SKIP, WORKS = "clear", "counted skip", "works"


@dataclass(frozen=True)
class Case:
    """One spoiled folder and the command that meets it.

    Attributes:
        kind: What is spoiled.
        name: How.
        spoil: Changes the working folder, which is the current one.
        command: Script and options.
        outcome: `clear`, `counted skip` or `works`.
        said: Words that the output must have.
    """

    kind: str
    name: str
    spoil: Callable[[], object]
    command: tuple[str, ...]
    outcome: str = CLEAR
    said: str = ""


def prepare(folder: Path) -> None:
    """Write a data set, a model YAML and a checkpoint into a folder."""
    content = write_set(folder / "set", [(64, 64)] * 4, "train")
    content |= write_set(folder / "set", [(64, 64)] * 2, "val")
    (folder / "set.yaml").write_text(yaml.safe_dump(content | {"path": "set"}))
    (folder / "net.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "hyp.yaml").write_text("lr0: 0.01\n")
    model = build_model(TINY)
    save_model(model, folder / "good.pt", args={"imgsz": 64})
    run = folder / "runs" / "prune" / "old"
    (run / "weights").mkdir(parents=True)
    options = PruneOptions(weights="good.pt", data="set.yaml", finetune=False, device="cpu")
    save_yaml(to_dict(options), run / "opt.yaml")
    save_model(model, run / "weights" / "pruned.pt", args={"imgsz": 64})


def nothing() -> None:
    """Leave the folder as it is."""


def add(file: str, text: str) -> Callable[[], object]:
    """Return a change that appends a text to a file."""
    return lambda: Path(file).write_text(Path(file).read_text() + text)


def put(file: str, content: str | bytes) -> Callable[[], object]:
    """Return a change that writes a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path(file).write_bytes(data)


def top(file: str, **changes: Any) -> Callable[[], object]:
    """Return a change of top-level keys of a YAML."""
    return lambda: Path(file).write_text(
        yaml.safe_dump(yaml.safe_load(Path(file).read_text()) | changes)
    )


def pipe(file: str) -> Callable[[], object]:
    """Return a change that puts a pipe, which nobody writes to, in the place of a file."""

    def change() -> None:
        Path(file).unlink(missing_ok=True)
        os.mkfifo(file)

    return change


def link(file: str, target: str) -> Callable[[], object]:
    """Return a change that puts a link in the place of a file."""

    def change() -> None:
        Path(file).unlink(missing_ok=True)
        Path(file).symlink_to(target)

    return change


def field(**changes: Any) -> Callable[[], object]:
    """Return a change of fields of the checkpoint."""

    def change() -> None:
        torch.save(torch.load("good.pt", weights_only=True) | changes, "good.pt")

    return change


def part(first: float, last: float, new: bytes = b"") -> Callable[[], object]:
    """Return a change that replaces a part of the checkpoint's bytes, given in shares of it."""

    def change() -> None:
        data = Path("good.pt").read_bytes()
        start, end = int(first * len(data)), int(last * len(data))
        Path("good.pt").write_bytes(data[:start] + new + data[end:])

    return change


def yaml_cases() -> Iterator[Case]:
    """Yield scalars that PyYAML fails on, nests and bombs, in each kind of YAML."""
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    texts = {
        "date out of range": "x: 2024-13-45\n",
        "integer of letters": "x: !!int x\n",
        "5000 digits": f"x: {'9' * 5000}\n",
        "deep nest": "x: " + "[" * 10000,
        "alias bomb": bomb,
        "self alias": "x: &x [*x]\n",
        "NUL": "x: \0\n",
        "python tag": "x: !!python/object/apply:os.getcwd []\n",
        "not closed": "x: [1\n",
        "unknown key": "xyz: 1\n",
        "no text": "\xff\xfe",
    }
    commands = {"set.yaml": VAL, "net.yaml": CHECK, "hyp.yaml": (*TRAIN, "--cfg", "net.yaml")}
    for file, command in commands.items():
        more = ("--hyp", "hyp.yaml") if file == "hyp.yaml" else ()
        for name, text in texts.items():
            spoil = add(file, text)
            if name == "no text":
                spoil = put(file, b"\xff\xfe")
            yield Case("YAML text", f"{file}: {name}", spoil, (*command, *more))


def data_cases() -> Iterator[Case]:
    """Yield data YAMLs, images and labels."""
    values = {
        "nc 1e9": {"nc": 10**9},
        "nc text": {"nc": "many"},
        "no names": {"names": None},
        "names number": {"names": 3},
        "path too long": {"path": "x" * 5000},
        "path list": {"path": ["a"]},
        "split missing": {"val": "nowhere"},
        "split number": {"val": 3},
        "fraction 2": {"fraction": 2},
        "generator list": {"generator": []},
        "fewer names than nc": {"nc": 7},
    }
    for name, change in values.items():
        yield Case("data YAML", name, top("set.yaml", **change), VAL)
    image, label = "set/images/val/000.png", "set/labels/val/000.txt"
    files = {
        "image is a pipe": pipe(image),
        "image is a device": link(image, "/dev/zero"),
        "image is text": put(image, "no image"),
        "image is empty": put(image, b""),
        "label is a pipe": pipe(label),
        "label link to nothing": link(label, "nowhere.txt"),
        "label of letters": put(label, "a b c d e\n"),
        "label of bytes": put(label, b"\xff\xfe\x00"),
        "label NaN": put(label, "0 nan 0.5 0.1 0.1\n"),
        "label of another class": put(label, "9 0.5 0.5 0.1 0.1\n"),
    }
    for name, spoil in files.items():
        yield Case("images and labels", name, spoil, VAL, SKIP, "left out")
    odd = os.fsdecode(b"set/images/val/caf\xe9.png")
    rename = lambda: Path(image).rename(odd)  # noqa: E731
    yield Case("images and labels", "name that is not UTF-8", rename, VAL, WORKS)


def option_cases() -> Iterator[Case]:
    """Yield command lines."""
    words = {
        "empty argument": ("",),
        "imgsz 200000": ("--imgsz", "200000"),
        "imgsz 0": ("--imgsz", "-64"),
        "400 digits": ("--epochs", "9" * 400),
        "NaN": ("--label-smoothing", "nan"),
        "workers 100000": ("--workers", "100000"),
        "unknown option": ("--epoch", "3"),
        "no such device": ("--device", "77"),
        "project is a file": ("--project", "net.yaml"),
        "name too long": ("--name", "x" * 300),
        "unknown choice": ("--optimizer", "SGDD"),
        "no such hyp": ("--hyp", "nowhere"),
    }
    for name, more in words.items():
        yield Case("options", name, nothing, (*TRAIN, "--cfg", "net.yaml", *more))
    for value in ("nan", "inf", "-1", "x", ""):
        yield Case("options", f"seconds {value!r}", nothing, (*PRUNE, "--latency-seconds", value))


def model_cases() -> Iterator[Case]:
    """Yield model YAMLs."""
    rows = {
        "unknown block": [-1, 1, "Covn", [8]],
        "a million repeats": [-1, 10**6, "C3", [8]],
        "kernel 100000": [-1, 1, "Conv", [8, 100000]],
        "stride 0": [-1, 1, "Conv", [8, 3, 0]],
        "infinite expansion": [-1, 1, "C3", [8, True, 1, float("inf")]],
        "row above": [99, 1, "Conv", [8]],
        "upsample by a million": [-1, 1, "nn.Upsample", [None, 10**6]],
        "shuffle by 0": [-1, 1, "nn.PixelShuffle", [0]],
        "no list": "Conv",
    }
    for name, row in rows.items():
        backbone = [*TINY["backbone"][:1], row]
        yield Case("model YAML", name, top("net.yaml", backbone=backbone), CHECK)
    for key, value in (
        *(("nc", 10**9), ("depth_multiple", 300), ("width_multiple", 1e9), ("ch", 1), ("ch", 4)),
        *(("anchors", [[1]]), ("activation", 3), ("head", []), ("backbone", 3)),
    ):
        spoil = top("net.yaml", **{key: value})
        if key == "depth_multiple":
            spoil = top("net.yaml", depth_multiple=300, backbone=[[-1, 9, "C3", [8]]])
        yield Case("model YAML", f"{key}: {value}", spoil, CHECK)


def checkpoint_cases() -> Iterator[Case]:
    """Yield checkpoints that are damaged, edited or hostile."""
    fields: dict[str, Any] = {
        "names": 3,
        "model_cfg": [],
        "structure": {"model.0.conv": 3},
        "state_dict": {"a": 1},
        "stride": None,
        "epoch": "x",
        "history": [1],
        "args": {"imgsz": 10**9},
        "format": 99,
        "anchors": "x",
        "extra": torch.zeros(1).expand(10**9),
    }
    for key, value in fields.items():
        yield Case("checkpoint fields", key, field(**{key: value}), VAL)
    bytes_ = {
        "empty": part(0, 1),
        "first half": part(0.5, 1),
        "second half": part(0, 0.5),
        "directory of ones": part(0.95, 1, b"\xff" * 300),
        "hole": part(0.4, 0.6),
        "text": put("good.pt", "no checkpoint" * 30),
        "a pipe": pipe("good.pt"),
        "a device": link("good.pt", "/dev/zero"),
        "missing": lambda: Path("good.pt").unlink(),
    }
    for name, spoil in bytes_.items():
        yield Case("checkpoint bytes", name, spoil, VAL)


def resume_cases() -> Iterator[Case]:
    """Yield files of a run that someone has edited by hand."""
    run, command = "runs/prune/old", ("prune.py", "--resume", "runs/prune/old")
    report = f"{run}/prune_report.json"
    edits: dict[str, Callable[[], object]] = {
        "opt.yaml: speed_up two": top(f"{run}/opt.yaml", speed_up="two"),
        "opt.yaml: ignore 3": top(f"{run}/opt.yaml", ignore=3),
        "opt.yaml: imgsz huge": top(f"{run}/opt.yaml", imgsz=10**7),
        "opt.yaml: broken": put(f"{run}/opt.yaml", "speed_up: [\n"),
        "opt.yaml: a pipe": pipe(f"{run}/opt.yaml"),
        "report: empty": put(report, ""),
        "report: list": put(report, "[]"),
        "report: row": put(report, '{"imgsz": 64, "stages": [3], "remarks": []}'),
        "report: nest": put(report, "[" * 100_000),
    }
    for name, spoil in edits.items():
        yield Case("resume", name, spoil, command)
    yield Case("resume", "train: no such file", nothing, ("train.py", "--resume", "nowhere.pt"))
    yield Case("resume", "train: finished", nothing, ("train.py", "--resume", "good.pt"))


def source_cases() -> Iterator[Case]:
    """Yield sources of detect.py."""
    image = "set/images/val/000.png"
    photos = ("--source", "set/images/val")
    refused: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
        "no such file": (nothing, ("--source", "nowhere.jpg")),
        "link to nothing": (link("a.jpg", "nowhere.jpg"), ("--source", "a.jpg")),
        "pipe": (pipe("a.mp4"), ("--source", "a.mp4")),
        "device": (link("a.png", "/dev/zero"), ("--source", "a.png")),
        "video of text": (put("a.mp4", "no video"), ("--source", "a.mp4")),
        "empty video": (put("a.avi", b""), ("--source", "a.avi")),
        "empty list": (put("a.txt", "\n\n"), ("--source", "a.txt")),
        "list of bytes": (put("a.txt", b"\xff\xfe\x00"), ("--source", "a.txt")),
        "list of nothing": (put("a.txt", "x.jpg\ny.mp4\n"), ("--source", "a.txt")),
        "another kind of file": (nothing, ("--source", "net.yaml")),
        "pattern without a match": (nothing, ("--source", "set/*.jpg")),
        "folder without images": (nothing, ("--source", "set/labels")),
        "path too long": (nothing, ("--source", "x" * 5000)),
        "no such camera": (nothing, ("--source", "97")),
        "unknown scheme": (nothing, ("--source", "ftp://host/a.jpg")),
        "address without host": (nothing, ("--source", "http:///x")),
        "nobody there": (nothing, ("--source", "http://127.0.0.1:9/x")),
        "no source": (nothing, ("--conf-thres", ".5")),
        "imgsz": (nothing, (*photos, "--imgsz", "65")),
        "class": (nothing, (*photos, "--classes", "3")),
        "names of other data": (put("d.yaml", "names: [a]\n"), (*photos, "--data", "d.yaml")),
        "weights are a folder": (nothing, (*photos, "--weights", "set")),
        "weights of text": (put("a.onnx", "no model"), (*photos, "--weights", "a.onnx")),
        "results over the source": (nothing, (*photos, "--project", "set", "--name", "images",
                                              "--exist-ok")),
    }  # fmt: skip
    for name, (spoil, words) in refused.items():
        yield Case("sources of detect.py", name, spoil, (*DETECT, *words))
    left_out = {
        "image is text": put(image, "no image"),
        "image is a pipe": pipe(image),
        "video is text": put("set/images/val/a.mp4", "no video"),
        "video name that is not UTF-8": put(os.fsdecode(b"set/images/val/caf\xe9.mp4"), "no video"),
    }
    for name, spoil in left_out.items():
        yield Case("sources of detect.py", name, spoil, (*DETECT, *photos), SKIP, "left out")
    odd = os.fsdecode(b"set/images/val/caf\xe9.png")
    rename = lambda: Path(image).rename(odd)  # noqa: E731
    words = (*photos, "--save-txt", "--save-csv", "--save-crop", "--conf-thres", "0")
    yield Case("sources of detect.py", "name that is not UTF-8", rename, (*DETECT, *words), WORKS)


def all_cases() -> list[Case]:
    """Return every case, kind by kind."""
    makers = (yaml_cases, data_cases, option_cases, model_cases, checkpoint_cases, resume_cases)
    makers = (*makers, source_cases)
    good = [Case("nothing spoiled", c[0], nothing, c, WORKS) for c in (VAL, CHECK)]
    return good + [case for maker in makers for case in maker()]

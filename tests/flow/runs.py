"""A tiny data set and train.py on it, for the tests that run the scripts."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from tests.conftest import ROOT
from tests.data_sets import write_set

TINY = [
    "--cfg",
    "yolov5n",
    "--hyp",
    "demo",
    "--imgsz",
    "64",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--noplots",
    "--epochs",
    "3",
]  # noqa: SIM905


def tiny_set(folder: Path, train: int = 10, val: int = 4) -> Path:
    """A data YAML with 64 px pictures."""
    content = write_set(folder, [(64, 64)] * train, "train") | write_set(
        folder, [(64, 48)] * val, "val"
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder / "tiny.yaml"


def command(*words: str | Path, script: str = "train.py") -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(
    *words: str | Path, folder: Path, script: str = "train.py", **more
) -> subprocess.CompletedProcess[str]:
    """A script in `folder`, to its end."""
    return subprocess.run(
        command(*words, script=script),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **more,
    )


def start(*words: str | Path, folder: Path, script: str = "train.py") -> subprocess.Popen[str]:
    """train.py or another script in `folder`, in the background, as the leader of a process group
    of its own.
    """
    return subprocess.Popen(
        command(*words, script=script),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def same_weights(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold bit-identical weights."""
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in (a, b))
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )

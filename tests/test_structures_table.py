"""The table of docs/structures.md: what a cell says, and where it goes."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks.published import PUBLISHED
from benchmarks.structures import (
    MARKERS,
    Measured,
    StructureOptions,
    export_parity,
    main,
    pruned,
    table,
)
from models import build_model
from tests.prune_toys import TINY_REP
from utils.errors import UserError

ROW = Measured(
    name="yolov5n-c3faster-repconv",
    parameters=1_614_495,
    gflops=3.66,
    deployed_parameters=1_593_439,
    deployed_gflops=3.6,
    trained="ok",
    speed_up=2.0004,
    parameters_left=0.434,
    seconds=12.3,
    skipped={"makes the output of the model": ["model.24.m.0", "model.24.m.1"]},
    inexact=["a gate"],
    before_ms=100.4,
    after_ms=60.6,
    onnx="1.2e-06",
    conditions="640 px",
)


def test_a_row_of_the_table():
    lines = table([ROW]).splitlines()
    assert (
        lines[2]
        == "| yolov5n-c3faster-repconv | 1,614,495 / 3.7 | 1,614,495 / 3.66 | 1,593,439 / 3.60 | ok"
        " | 2.000x | 43 % | 12 | 100 | 61 (1.66x) | 1.2e-06 |"
    )
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert (
        lines[-1] == "- **yolov5n-c3faster-repconv**: makes the output of the model (2 layers, as"
        " model.24.m.0). Cut without full proof: a gate."
    )


def test_what_was_measured_is_not_measured_again(tmp_path: Path):
    for name in PUBLISHED:
        (tmp_path / f"{name}.json").write_text(json.dumps(asdict(ROW) | {"name": name}))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    main(StructureOptions(project=str(tmp_path), table=str(page)))
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert [
        line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| yolo")
    ] == list(PUBLISHED)
    page.write_text("no markers")
    with pytest.raises(UserError, match="has no lines"):
        main(StructureOptions(project=str(tmp_path), table=str(page)))
    with pytest.raises(UserError, match="no such row"):
        main(StructureOptions(only=("yolov9",)))


def test_a_cut_reaches_the_target_and_is_exported_or_says_why_not(tmp_path: Path):
    torch.manual_seed(0)
    smaller, skipped, reached = pruned(build_model(TINY_REP), 2.0)
    assert 2.0 <= reached < 2.1 and {s.layer for s in skipped} == {"model.8.m.0", "model.8.m.1"}
    said = export_parity(smaller.fuse(), tmp_path / "x.onnx", 64)
    assert said.startswith("not tried: onnx") or float(said) < 1e-4

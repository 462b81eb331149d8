"""The comparison table: figures by hand, changes, warnings, files."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2

from utils.comparison import ComparisonRow, Conditions, markdown, notes, plot, write

BASE = ComparisonRow(
    "base", 1_000_000, 1_000_000, 4.0, 0.16, 4.0, 0.700, 0.400, 2.0, 128, "base.pt"
)
FAST = ComparisonRow("fast", 250_000, 250_000, 2.0, 0.08, 1.0, 0.690, 0.385, 1.0, 128, "fast.pt")
SLOW = ComparisonRow("slow", 500_000, 500_000, 2.0, 0.08, 2.0, 0.710, 0.410, 1.9, 128, "slow.pt")
CONDITIONS = Conditions("demo", 100, 32, "CPU", "fp32", 2)


def cells(text: str, name: str) -> list[str]:
    return [
        c.strip()
        for line in text.splitlines()
        if line.startswith(f"| {name} ")
        for c in line.strip("|").split("|")
    ]


def test_every_figure_with_its_change_against_the_first_row():
    text = markdown([BASE, FAST], CONDITIONS)
    assert cells(text, "base") == [
        "base",
        "1,000,000",
        "4.00",
        "0.160",
        "4.00",
        "0.700",
        "0.400",
        "2.00",
    ]
    assert cells(text, "fast") == [
        "fast",
        "250,000 (-75 %, 4.00x)",
        "2.00 (-50 %, 2.00x)",
        "0.0800 (-50 %, 2.00x)",
        "1.00 (-75 %, 4.00x)",
        "0.690 (-0.010)",
        "0.385 (-0.015)",
        "1.00 (-50 %, 2.00x)",
    ]
    assert "demo: 100 images at 128 px" in text and "batch 32, CPU, fp32, 2 threads" in text


def test_yolov7_shows_what_is_deployed_beside_what_tables_count():
    row = replace(BASE, deployed_parameters=999_041)
    assert "Deployed" not in markdown([BASE], CONDITIONS)
    assert cells(markdown([row], CONDITIONS), "base")[1:3] == ["1,000,000", "999,041"]


def test_fewer_gflops_without_speed_are_named():
    assert notes([BASE, FAST]) == []
    (note,) = notes([BASE, SLOW])
    assert (
        note.startswith("slow has 2.00x fewer GFLOPs but runs only 1.05x faster")
        and "--round-to 8" in note
    )


def test_files_hold_the_same_figures(tmp_path: Path):
    write([BASE, FAST], CONDITIONS, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["rows"][1]["map"] == 0.385 and content["conditions"]["images"] == 100
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["base", "fast"] and float(rows[1]["latency_ms"]) == 1.0
    assert "fast" in (tmp_path / "report.md").read_text()


def test_plot_is_written_at_its_size(tmp_path: Path):
    plot([BASE, FAST, SLOW], tmp_path / "a.png")
    assert cv2.imread(str(tmp_path / "a.png")).shape == (576, 1320, 3)

"""The table that compares runs: one row a model, every figure with its change against the first
row.
"""

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.files import write_atomic
from utils.tables import markdown_table


@dataclass(frozen=True)
class ComparisonRow:
    """What is known of one model.

    GFLOPs are 2 x MACs of the deployed model; latency is of one image at the stated batch.
    """

    name: str
    parameters: (
        int  # fused, as published tables count them: YOLOv7's implicit vectors stay registered
    )
    deployed_parameters: int  # what is really left
    gflops_640: float
    gflops: float  # at the run's own image size
    size_mb: float  # of the checkpoint file, 1e6 bytes
    map50: float
    map: float
    latency_ms: float
    imgsz: int
    weights: str


@dataclass(frozen=True)
class Conditions:
    """How the figures came about; printed under the table."""

    data: str
    images: int
    batch: int
    device: str
    precision: str
    threads: int


COLUMNS = {
    "parameters": "Parameters",
    "deployed_parameters": "Deployed",
    "gflops_640": "GFLOPs @640",
    "gflops": "GFLOPs @size",
    "size_mb": "Size MB",
    "map50": "mAP50",
    "map": "mAP50-95",
    "latency_ms": "ms / image",
}


def markdown(rows: list[ComparisonRow], conditions: Conditions) -> str:
    """The whole report as Markdown: the table, how it was measured, and what should worry the
    reader.
    """
    folded = all(row.deployed_parameters == row.parameters for row in rows)
    columns = [name for name in COLUMNS if not (folded and name == "deployed_parameters")]
    head = ["Model", *(COLUMNS[name] for name in columns)]
    body = [
        [row.name.replace("|", "/"), *(_cell(row, rows[0], column) for column in columns)]
        for row in rows
    ]
    lines = [markdown_table([head, *body]), "", _how(rows, conditions)]
    return "\n".join([*lines, *(f"\n**Note**: {text}" for text in notes(rows))]) + "\n"


def notes(rows: list[ComparisonRow]) -> list[str]:
    """Warnings a user should read before deploying: fewer GFLOPs that bring no speed."""
    base, found = rows[0], []
    for row in rows[1:]:
        flops, speed = base.gflops / row.gflops, base.latency_ms / row.latency_ms
        found.append(slow_note(row.name, flops, speed))
    return [text for text in found if text]


def slow_note(name: str, flops: float, speed: float) -> str:
    """What to read where `flops` times fewer GFLOPs bring only `speed` times the speed; empty where
    they bring enough.
    """
    if not (flops >= 1.5 and speed < 0.6 * flops) and not (flops >= 1.8 and speed < 1.2):
        return ""
    return (
        f"{name} has {flops:.2f}x fewer GFLOPs but runs only {speed:.2f}x faster here. Small layers"
        " are bound by memory and call overhead: try a larger batch, `prune.py --round-to 8`,"
        " `prune.py --target latency`, or measure on the device you deploy to."
    )


def write(rows: list[ComparisonRow], conditions: Conditions, folder: Path) -> None:
    """Write `report.md`, `report.csv` and `report.json` into a folder."""
    write_atomic(folder / "report.md", markdown(rows, conditions))
    content = {
        "conditions": asdict(conditions),
        "rows": [asdict(row) for row in rows],
        "notes": notes(rows),
    }
    write_atomic(folder / "report.json", json.dumps(content, indent=2) + "\n")
    with (folder / "report.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(asdict(rows[0])))
        table.writeheader()
        table.writerows(asdict(row) for row in rows)


def plot(rows: list[ComparisonRow], path: Path) -> None:
    """Accuracy over GFLOPs and over latency, one marker a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    markers = "osD^vP*X<>ph"
    for axis, (column, label) in zip(
        axes,
        [("gflops", "GFLOPs at the run's image size"), ("latency_ms", "ms per image")],
        strict=True,
    ):
        for number, row in enumerate(rows):
            axis.plot(
                getattr(row, column),
                row.map,
                markers[number % len(markers)],
                markersize=9,
                label=row.name,
            )
        axis.set_xlabel(label)
        axis.set_xlim(0, 1.1 * max(getattr(row, column) for row in rows))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mAP50-95")
    axes[0].set_ylim(0, max(1.1 * max(row.map for row in rows), 0.01))
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(len(rows), 3),
        frameon=False,
    )
    figure.suptitle("Accuracy against cost (up and to the left is better)")
    figure.savefig(path, dpi=120)


def _how(rows: list[ComparisonRow], conditions: Conditions) -> str:
    sizes = ", ".join(str(size) for size in sorted({row.imgsz for row in rows}))
    return (
        f"{conditions.data}: {conditions.images} images at {sizes} px. Changes are against the"
        " first row; 2.00x is two times less. Latency: deployed models in turn, median; batch"
        f" {conditions.batch}, {conditions.device}, {conditions.precision}, {conditions.threads}"
        " threads. GFLOPs: 2 x MACs of the deployed model."
    )


def _cell(row: ComparisonRow, base: ComparisonRow, column: str) -> str:
    value, reference = getattr(row, column), getattr(base, column)
    if isinstance(value, int):
        text = f"{value:,}"
    else:
        text = f"{value:.3f}" if column in {"map50", "map"} else f"{value:#.3g}".rstrip(".")
    if row is base:
        return text
    if column in {"map50", "map"}:
        return f"{text} ({value - reference:+.3f})"
    return f"{text} ({100 * (value / reference - 1):+.0f} %, {reference / value:.2f}x)"

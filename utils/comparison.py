"""The table that compares runs: a row for each model, with the changes against the first row."""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from utils.files import save_picture, write_atomic, write_csv
from utils.plots.text import axis_text
from utils.tables import markdown_table


@dataclass(frozen=True)
class ComparisonRow:
    """Figures of one model. GFLOPs are 2 x MACs of the deployed model.

    Args:
        name: Name of the model.
        parameters: Parameters of the fused model as published tables count them, YOLOv7's implicit
            vectors included.
        deployed_parameters: Parameters of the deployed model, without folded implicit vectors.
        gflops_640: GFLOPs at 640 px.
        gflops: GFLOPs at the run's own image size.
        size_mb: Size of the checkpoint file in units of 1e6 bytes.
        map50: mAP at IoU .5, 0..1.
        map: mAP over the IoU thresholds .5 to .95, 0..1.
        latency_ms: Milliseconds an image, at the batch of `Conditions`.
        imgsz: Image size in pixels.
        weights: Path of the checkpoint.
    """

    name: str
    parameters: int
    deployed_parameters: int
    gflops_640: float
    gflops: float
    size_mb: float
    map50: float
    map: float
    latency_ms: float
    imgsz: int
    weights: str


@dataclass(frozen=True)
class Conditions:
    """Conditions of the measurement; printed under the table.

    Args:
        data: Data YAML.
        images: Number of validation images.
        batch: Images of a batch.
        device: Name of the device.
        precision: fp32 or fp16.
        threads: Threads of torch.
    """

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
    """Return the whole report as Markdown: the table, the conditions and the warnings."""
    columns = list(COLUMNS)
    if all(row.deployed_parameters == row.parameters for row in rows):
        columns.remove("deployed_parameters")
    head = ["Model", *(COLUMNS[name] for name in columns)]
    body = [
        [row.name.replace("|", "/"), *(_cell(row, rows[0], column) for column in columns)]
        for row in rows
    ]
    lines = [markdown_table([head, *body]), "", _how(rows, conditions)]
    return "\n".join([*lines, *(f"\n**Note**: {text}" for text in notes(rows))]) + "\n"


def notes(rows: list[ComparisonRow]) -> list[str]:
    """Return warnings to read before deploying: fewer GFLOPs that bring too little speed."""
    base = rows[0]
    texts = [
        slow_note(row.name, base.gflops / row.gflops, base.latency_ms / row.latency_ms)
        for row in rows[1:]
    ]
    return [text for text in texts if text]


def slow_note(name: str, flops: float, speed: float) -> str:
    """Return a warning where fewer GFLOPs bring too little speed, else "".

    Args:
        name: Name of the model.
        flops: GFLOPs of the first model over those of this model.
        speed: Latency of the first model over that of this model.
    """
    far_behind = flops >= 1.5 and speed < 0.6 * flops
    hardly_faster = flops >= 1.8 and speed < 1.2
    if not (far_behind or hardly_faster):
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
    write_csv(
        folder / "report.csv", list(asdict(rows[0])), [[*asdict(row).values()] for row in rows]
    )


def plot(rows: list[ComparisonRow], path: Path) -> None:
    """Draw accuracy over GFLOPs and over latency, a marker for each model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    markers = "osD^vP*X<>ph"
    costs = (("gflops", "GFLOPs at the run's image size"), ("latency_ms", "ms per image"))
    for axis, (column, label) in zip(axes, costs, strict=True):
        for number, row in enumerate(rows):
            axis.plot(
                getattr(row, column),
                row.map,
                markers[number % len(markers)],
                markersize=9,
                label=axis_text(row.name),
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
    save_picture(path, partial(figure.savefig, format=path.suffix[1:], dpi=120))


def _how(rows: list[ComparisonRow], conditions: Conditions) -> str:
    """Return the lines on the conditions of the measurement."""
    sizes = ", ".join(str(size) for size in sorted({row.imgsz for row in rows}))
    return (
        f"{conditions.data}: {conditions.images} images at {sizes} px. Changes are against the"
        " first row; 2.00x is two times less. Latency: deployed models in turn, median; batch"
        f" {conditions.batch}, {conditions.device}, {conditions.precision}, {conditions.threads}"
        " threads. GFLOPs: 2 x MACs of the deployed model."
    )


def _cell(row: ComparisonRow, base: ComparisonRow, column: str) -> str:
    """Return a figure with its change against the first row: a difference of mAP, or a ratio."""
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

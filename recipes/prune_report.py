"""What a pruning run leaves to read: channels layer by layer, a row a step, the table before and after."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from models import Model
from prune_methods import Plan, Step
from utils.evaluator import EvalResult

BAR_INCHES = 0.16  # height of one layer in channels.png: labels of 7 points stay apart


def write_steps(steps: Iterable[Step], results: Mapping[int, EvalResult], path: Path) -> None:
    """`prune.csv`: a row a step; mAP where that step was validated."""
    rows = []
    for s in steps:
        maps = [f"{results[s.step].map50:.5f}", f"{results[s.step].map:.5f}"] if s.step in results else ["", ""]
        rows.append([s.step, s.channels, f"{s.speed_up:.4f}", s.parameters, f"{2 * s.macs / 1e9:.4f}", *maps])
    write_csv(path, ("step", "channels", "speed_up", "parameters", "gflops", "mAP_0.5", "mAP_0.5:0.95"), rows)


def layer_widths(model: nn.Module) -> dict[str, int]:
    """Output channels of every convolution and linear layer."""
    return {name: m.weight.shape[0] for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def write_channels(before: Model, after: Model, folder: Path, picture: bool = True) -> None:
    """`channels.csv`: layer, before, after, share kept; and the same as a bar chart."""
    old, new = layer_widths(before), layer_widths(after)
    rows = [(name, width, new[name], f"{new[name] / width:.4f}") for name, width in old.items()]
    write_csv(folder / "channels.csv", ("layer", "before", "after", "kept"), rows)
    if picture:
        plot_channels(old, new, folder / "channels.png")


def plot_channels(old: Mapping[str, int], new: Mapping[str, int], path: Path) -> None:
    """Horizontal bars, a layer each, from the input at the top to the output: width before (pale) and after."""
    names = list(old)
    figure = Figure(figsize=(9, 1.4 + BAR_INCHES * len(names)), layout="constrained")
    axes = figure.subplots()
    places = range(len(names))
    axes.barh(places, [old[n] for n in names], height=0.85, color="#cfd8e3", label="before")
    axes.barh(places, [new[n] for n in names], height=0.85, color="#2166ac", label="after")
    widest = max(old.values())
    for place, name in zip(places, names, strict=True):
        text = f"{old[name]} → {new[name]}" if new[name] != old[name] else f"{old[name]}"
        axes.text(old[name] + 0.008 * widest, place, text, va="center", fontsize=6.5)
    axes.set_yticks(places, names, fontsize=6.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, widest * 1.14)
    axes.set_xlabel("output channels")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 1), framealpha=1)
    axes.set_title(f"Channels layer by layer: {sum(old.values())} before, {sum(new.values())} after")
    figure.savefig(path, dpi=130)


class Report:
    """The table of `prune_report.md`; each stage adds its row."""

    def __init__(self, imgsz: int):
        """`imgsz`: pixels at which GFLOPs are stated."""
        self.imgsz = imgsz
        self.rows: list[tuple[str, dict[str, Any], EvalResult]] = []
        self.remarks: list[str] = []  # printed under the table

    def add(self, stage: str, model: Model, result: EvalResult) -> None:
        """Measure the model and keep its validation."""
        self.rows.append((stage, model.info(self.imgsz), result))

    def markdown(self, plan: Plan) -> str:
        """The table, and how the figures are meant."""
        head = ["Stage", "Parameters", f"GFLOPs @{self.imgsz}", "Speed-up", "mAP50", "mAP50-95"]
        base = self.rows[0][1]["macs"]
        cells = [
            [
                stage,
                f"{info['deployed_parameters']:,}",
                f"{info['gflops_fused']:.2f}",
                f"{base / info['macs']:.2f}x",
                f"{result.map50:.3f}",
                f"{result.map:.3f}",
            ]
            for stage, info, result in self.rows
        ]
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
        lines = [_line(head, widths), _line(["-" * w for w in widths], widths), *(_line(row, widths) for row in cells)]
        state = "met" if plan.met else "NOT met"
        target = f"{plan.target:g}x" if plan.reached is None else f"{plan.target:g}x in time"
        lines += [
            "",
            f"Target {target}: {state}, {plan.ratio:.3f}x after {len(plan.steps)} steps.",
            "Parameters, GFLOPs (2 x MACs of convolutions, linear layers and matrix products) and speed-up are of the deployed",
            "model: batch norms and branches folded.",
        ]
        lines += [line for remark in self.remarks for line in ("", remark)]
        return "\n".join(lines) + "\n"

    def write(self, path: Path, plan: Plan) -> None:
        """`prune_report.md`."""
        path.write_text("# Pruning\n\n" + self.markdown(plan), encoding="utf-8")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(cells, widths, strict=True)))
    return "| " + " | ".join([first, *rest]) + " |"


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with its head."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)

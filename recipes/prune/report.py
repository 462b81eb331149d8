"""Files that a pruning run writes for people: channels by layer, a row a step, and the report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from models import Model
from models.widths import channels_of
from prune_methods import Plan, Step
from prune_methods.surgery.reconstruct import LayerFit
from utils.errors import UserError
from utils.evaluator import EvalResult
from utils.files import read_text, save_picture, write_atomic, write_csv
from utils.tables import markdown_table

DAMAGED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
MOST_BYTES = 2**20  # of that file
REPORT_JSON = "prune_report.json"
BAR_INCHES = 0.16  # height of one layer in channels.png: labels of 7 points stay apart


def write_steps(steps: Iterable[Step], results: Mapping[Step, EvalResult], path: Path) -> None:
    """Write `prune.csv`, a row a step; mAP is empty for steps that were not validated."""
    head = ("step", "channels", "speed_up", "parameters", "gflops", "mAP_0.5", "mAP_0.5:0.95")
    rows = []
    for s in steps:
        maps = [f"{results[s].map50:.5f}", f"{results[s].map:.5f}"] if s in results else ["", ""]
        gflops = f"{2 * s.macs / 1e9:.4f}"
        rows.append([s.step, s.channels, f"{s.speed_up:.4f}", s.parameters, gflops, *maps])
    write_csv(path, head, rows)


def write_fits(fits: Sequence[LayerFit], path: Path) -> None:
    """Write `reconstruction.csv`, a row a fitted layer; no file without a fit.

    Its columns are the shares of the variance of the uncut model's outputs that the cut weights
    and the fitted weights lose.
    """
    if fits:
        rows = [(fit.layer, f"{fit.before:.5f}", f"{fit.after:.5f}") for fit in fits]
        write_csv(path, ("layer", "cut", "fitted"), rows)


def layer_widths(model: nn.Module) -> dict[str, int]:
    """Return the output channels of every convolution and linear layer by name."""
    return {
        name: channels_of(m)[0]
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    }


def write_channels(before: Model, after: Model, folder: Path, picture: bool = True) -> None:
    """Write `channels.csv` (layer, before, after, share kept) and the same as a bar chart.

    The chart, `channels.png`, is left out without `picture`.
    """
    old, new = layer_widths(before), layer_widths(after)
    rows = [(name, width, new[name], f"{new[name] / width:.4f}") for name, width in old.items()]
    write_csv(folder / "channels.csv", ("layer", "before", "after", "kept"), rows)
    if picture:
        plot_channels(old, new, folder / "channels.png")


def plot_channels(old: Mapping[str, int], new: Mapping[str, int], path: Path) -> None:
    """Draw a horizontal bar a layer, from the input at the top to the output.

    Each bar shows the output channels before (pale) and after.
    """
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
    axes.set_title(
        f"Channels layer by layer: {sum(old.values())} before, {sum(new.values())} after"
    )
    save_picture(path, partial(figure.savefig, format=path.suffix[1:], dpi=130))


@dataclass(frozen=True)
class StageRow:
    """A model at one stage of the run.

    Sizes are those of the deployed form; GFLOPs are stated at the report's image size.
    """

    stage: str
    parameters: int
    gflops: float
    macs: int
    map50: float
    map: float


class Report:
    """The table of `prune_report.md`, a row a stage.

    `prune_report.json` has the same figures for programs and for resuming.
    """

    def __init__(self, imgsz: int):
        """`imgsz`: pixels at which GFLOPs are stated."""
        self.imgsz = imgsz
        self.rows: list[StageRow] = []
        self.remarks: list[str] = []  # printed under the table

    def add(self, stage: str, model: Model, result: EvalResult) -> None:
        """Measure the model, and add a row with the result of its validation."""
        info = model.info(self.imgsz)
        sizes = int(info["deployed_parameters"]), float(info["gflops_fused"]), int(info["macs"])
        self.rows.append(StageRow(stage, *sizes, float(result.map50), float(result.map)))

    def conclude(self, plan: Plan) -> None:
        """Say whether the target was met, as the first remark."""
        state = "met" if plan.met else "NOT met"
        target = f"{plan.target:g}x" if plan.reached is None else f"{plan.target:g}x in time"
        self.remarks.insert(
            0, f"Target {target}: {state}, {plan.ratio:.3f}x after {len(plan.steps)} steps."
        )

    def markdown(self) -> str:
        """Return the table with the remarks and the meaning of the figures."""
        head = ["Stage", "Parameters", f"GFLOPs @{self.imgsz}", "Speed-up", "mAP50", "mAP50-95"]
        cells = [
            [
                row.stage,
                f"{row.parameters:,}",
                f"{row.gflops:.2f}",
                f"{self.rows[0].macs / row.macs:.2f}x",
                f"{row.map50:.3f}",
                f"{row.map:.3f}",
            ]
            for row in self.rows
        ]
        table = markdown_table([head, *cells], right=range(1, len(head)))
        meaning = (
            "Parameters, GFLOPs (2 x MACs of convolutions, linear layers and matrix products) and"
            " speed-up are of the deployed\nmodel: batch norms and branches folded."
        )
        return "\n\n".join([table, *self.remarks, meaning]) + "\n"

    def write(self, folder: Path) -> None:
        """Write `prune_report.md` and `prune_report.json`."""
        write_atomic(folder / "prune_report.md", "# Pruning\n\n" + self.markdown())
        content = {
            "imgsz": self.imgsz,
            "stages": [asdict(row) for row in self.rows],
            "remarks": self.remarks,
        }
        write_atomic(folder / REPORT_JSON, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Report":
        """Return the report that `write` wrote.

        Raises:
            UserError: The file has been damaged or edited.
        """
        file = folder / REPORT_JSON
        try:
            content = json.loads(read_text(file, MOST_BYTES))
            report = cls(int(content["imgsz"]))
            report.rows = [StageRow(**row) for row in content["stages"]]
            report.remarks = [str(remark) for remark in content["remarks"]]
            report.markdown()  # every figure is a number that can be printed
        except DAMAGED as error:
            raise UserError(
                f"{file}: damaged or edited: {str(error)[:200]}; delete it to prune anew"
            ) from None
        return report

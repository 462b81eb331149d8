"""Pictures of a run: the curves of results.csv."""

import math
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from utils.engine.hooks import Hook, TrainerState
from utils.engine.run_hooks import users_columns
from utils.files import save_picture


def plot_results(rows: list[dict[str, float]], path: Path) -> None:
    """One small plot a column of results.csv over the epochs; train and val of the same loss share
    theirs.
    """
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row if name != "epoch"):
        group, _, quantity = name.partition("/")
        panels.setdefault(
            "learning rate" if group == "x" else quantity.replace("_", " "), []
        ).append(name)
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.9 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            axis.plot(
                *zip(*points, strict=True),
                marker="." if len(points) < 30 else "",
                label=name.removeprefix("x/"),
            )
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    save_picture(path, partial(figure.savefig, format=path.suffix[1:], dpi=120))


class ResultsPlot(Hook):
    """`results.png`, drawn once at the end."""

    main_only = True

    def __init__(self, path: Path):
        self.path = path

    def on_fit_end(self, trainer: TrainerState) -> None:
        """Draw the whole history."""
        if trainer.history:
            plot_results([users_columns(row) for row in trainer.history], self.path)

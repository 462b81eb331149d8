"""Pictures of batch norm scales in sparse training: histogram, layers and distribution by epoch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.files import save_picture

BINS = 80
ROWS_NAMED = 70  # names that the heat map shows at most; with more layers only every n-th row


def plot_histogram(
    before: np.ndarray, now: np.ndarray, small: float, title: str, path: Path
) -> None:
    """Draw a histogram of |gamma|: an outline for the start of the run, bars for now.

    Counts are logarithmic, since few channels are large.

    Args:
        before: float (channels,), gammas at the start.
        now: float (channels,), gammas now.
        small: |gamma| below which a channel counts as gone.
        title: the time of `now`, such as "epoch 7".
        path: file to write.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    before, now = np.abs(before), np.abs(now)
    edges = np.linspace(0, max(before.max(), now.max(), small) * 1.02, BINS + 1)
    axis.hist(now, edges, color="tab:blue", alpha=0.75, label=f"{title}: mean {now.mean():.3f}")
    axis.hist(
        before,
        edges,
        histtype="step",
        color="black",
        linewidth=1.2,
        label=f"start: mean {before.mean():.3f}",
    )
    share = (now < small).mean()
    axis.axvline(
        small,
        color="tab:red",
        linewidth=1.2,
        label=f"below {small:g}: {share:.1%} of {len(now)} channels",
    )
    axis.set(
        xlabel="|gamma|",
        ylabel="channels",
        yscale="log",
        xlim=(0, edges[-1]),
        title=f"Batch norm scales, {title}",
    )
    axis.set_ylim(bottom=0.7)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    save_picture(path, partial(figure.savefig, format=path.suffix[1:], dpi=110))


def plot_heatmap(
    median: np.ndarray, share: np.ndarray, small: float, names: Sequence[str], path: Path
) -> None:
    """Draw two heat maps, a row a layer and a column an epoch.

    Args:
        median: float (epochs, layers), median |gamma|.
        share: float (epochs, layers), share of channels below `small`, 0..1.
        small: |gamma| below which a channel counts as gone.
        names: names of the layers.
        path: file to write.
    """
    layers = len(names)
    figure = Figure(figsize=(13, max(4.0, 0.16 * layers + 1.5)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    epochs = len(median)
    panels = (
        (left, median, "median |gamma|", "viridis", max(float(median.max()), 1e-6)),
        (right, 100 * share, f"% of channels with |gamma| < {small:g}", "magma", 100.0),
    )
    for axis, values, title, colours, top in panels:
        extent = (-0.5, epochs - 0.5, layers - 0.5, -0.5)
        picture = axis.imshow(
            values.T,
            aspect="auto",
            cmap=colours,
            vmin=0,
            vmax=top,
            interpolation="nearest",
            extent=extent,
            origin="upper",
        )
        figure.colorbar(picture, ax=axis, shrink=0.8)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    step = -(-layers // ROWS_NAMED)
    left.set_yticks(range(0, layers, step), list(names)[::step], fontsize=7)
    save_picture(path, partial(figure.savefig, format=path.suffix[1:], dpi=110))


def plot_evolution(
    gammas: np.ndarray, norms: np.ndarray, percentiles: Sequence[int], small: float, path: Path
) -> None:
    """Draw the distribution of |gamma| over the epochs, and of the group norms where given.

    Args:
        gammas: float (epochs, columns): mean, percentiles, share below `small`.
        norms: float (epochs, columns): mean, percentiles; no columns without group norms.
        percentiles: which ones, ascending and symmetric around 50.
        small: |gamma| below which a channel counts as gone.
        path: file to write.
    """
    panels = 2 if norms.shape[1] else 1
    figure = Figure(figsize=(8.5, 4.2 * panels), layout="constrained")
    axes = figure.subplots(panels, squeeze=False)[:, 0]
    count = len(percentiles)
    _bands(axes[0], gammas[:, 0], gammas[:, 1 : count + 1], percentiles, "|gamma|", "tab:blue")
    second = axes[0].twinx()
    second.plot(
        range(len(gammas)),
        100 * gammas[:, -1],
        color="tab:red",
        marker=".",
        label=f"% below {small:g}",
    )
    second.set(ylabel=f"% of channels below {small:g}", ylim=(0, 100))
    second.legend(loc="upper right")
    axes[0].set_title("Batch norm scales, all channels")
    if panels == 2:
        _bands(
            axes[1], norms[:, 0], norms[:, 1:], percentiles, "norm of coupled slices", "tab:green"
        )
        axes[1].set_title("Group norms, all channels")
    save_picture(path, partial(figure.savefig, format=path.suffix[1:], dpi=110))


def _bands(
    axis: Axes,
    mean: np.ndarray,
    values: np.ndarray,
    percentiles: Sequence[int],
    label: str,
    colour: str,
) -> None:
    """Draw median and mean as lines, and pairs of percentiles as bands around them.

    Args:
        axis: where to draw.
        mean: float (epochs,).
        values: float (epochs, percentiles).
        percentiles: which ones, ascending and symmetric around 50.
        label: name of the value axis.
        colour: of bands and median.
    """
    epochs, count = np.arange(len(mean)), len(percentiles)
    for i in range(count // 2):
        low, high = values[:, i], values[:, count - 1 - i]
        text = f"{percentiles[i]} to {percentiles[count - 1 - i]} %"
        axis.fill_between(
            epochs, low, high, color=colour, alpha=0.18 + 0.14 * i, linewidth=0, label=text
        )
    axis.plot(epochs, values[:, count // 2], color=colour, marker=".", label="median")
    axis.plot(epochs, mean, color="black", linestyle="--", linewidth=1, label="mean")
    axis.set(xlabel="epoch", ylabel=label)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")

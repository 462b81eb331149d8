"""`check.py`: check a model YAML row by row, before anything is trained."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from models import Model, build_model
from models.yolo import Row
from prune_methods import ChannelGroup, Skipped, run_preflight
from prune_methods.groups.graph import PRODUCERS
from prune_methods.groups.inexact import inexact_blocks
from utils.images import whole_strides
from utils.log import LOGGER
from utils.options.check import CheckOptions
from utils.profiling import Passed, count_parameters, macs_by_part
from utils.tables import console_table

LAYERS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear
REASON = 150  # most characters of a reason that are shown


@dataclass(frozen=True)
class RowReport:
    """A line of the table.

    Args:
        index: Number of the row, or first and last number where the row has several outputs.
        source: Numbers of the rows that the input comes from.
        block: Name of the block.
        shape: Shapes of the outputs.
        parameters: Number of parameters of the training form.
        deployed: Number of parameters of the deployed form.
        gflops: GFLOPs of the deployed form.
        pruning: What pruning can cut; see `fates_of_rows`.
    """

    index: str
    source: str
    block: str
    shape: str
    parameters: int
    deployed: int
    gflops: float
    pruning: str


def check(opt: CheckOptions) -> None:
    """Print the table of every YAML.

    Raises:
        UserError: A YAML cannot be built; the message names file and row.
    """
    for cfg in opt.cfg:
        model = build_model(cfg, opt.nc)
        groups, skipped = run_preflight(model, (), opt.graph_time_limit) if opt.prune else ([], [])
        imgsz = whole_strides(opt.imgsz, model.max_stride)
        lines = table(row_reports(model, imgsz, groups, skipped))
        LOGGER.info(
            f"{cfg}: {len(model.rows)} rows, {model.nc} classes, {imgsz} x {imgsz}"
            f" px\n{lines}\n{totals(model, imgsz)}"
        )
        if opt.prune:
            LOGGER.info(pruning_summary(model, groups, skipped))


def row_reports(
    model: Model, imgsz: int, groups: Sequence[ChannelGroup] = (), skipped: Sequence[Skipped] = ()
) -> list[RowReport]:
    """Return a line for each row of a model; without groups the last column stays empty.

    Args:
        model: Model in training form.
        imgsz: Image size in pixels at which shapes and GFLOPs are counted.
        groups: Groups of channels that can be cut.
        skipped: Layers that stay whole, with reasons.
    """
    deployed = model.fuse()
    passed = macs_by_part(deployed, [f"model.{row.index}" for row in deployed.rows], imgsz)
    fates = fates_of_rows(model, groups, skipped)
    return [
        _report(row, after.module, passed[f"model.{row.index}"], fates)
        for row, after in zip(model.rows, deployed.rows, strict=True)
    ]


def _report(row: Row, deployed: nn.Module, passed: Passed, fates: Mapping[int, str]) -> RowReport:
    """Return the line of one row, from its training form, deployed form and forward pass."""
    last = row.index + row.outputs - 1
    return RowReport(
        index=str(row.index) if row.outputs == 1 else f"{row.index}-{last}",
        source=", ".join("image" if i < 0 else str(i) for i in row.source),
        block=row.block,
        shape=" ".join("x".join(map(str, shape)) for shape in passed.shapes),
        parameters=count_parameters(row.module),
        deployed=count_parameters(deployed),
        gflops=2 * passed.macs / 1e9,
        pruning=fates.get(row.index, ""),
    )


def fates_of_rows(
    model: Model, groups: Sequence[ChannelGroup], skipped: Sequence[Skipped]
) -> dict[int, str]:
    """Return what pruning can cut, by number of the row.

    The words are `yes`, `3 of 4 layers` or `no: reason`, with ` (inexact)` where the cut is not
    provably exact. Rows without layers of their own are left out.
    """
    if not (groups or skipped):
        return {}
    members = [member for group in groups for member in group.members]
    cut = {member.name for member in members if member.kind in PRODUCERS}
    reasons = {item.layer: item.reason for item in skipped}
    inexact = inexact_blocks(model)
    fates: dict[int, str] = {}
    for row in model.rows:
        place = f"model.{row.index}"
        layers = [
            f"{place}.{name}".rstrip(".")
            for name, module in row.module.named_modules()
            if isinstance(module, LAYERS)
        ]
        if layers:
            marked = any(name == place or name.startswith(f"{place}.") for name in inexact)
            fates[row.index] = _fate(layers, cut, reasons) + (" (inexact)" if marked else "")
    return fates


def _fate(layers: Sequence[str], cut: Collection[str], reasons: Mapping[str, str]) -> str:
    """Return what pruning can cut of a row with these layers; name the most frequent reason."""
    whole = [name for name in layers if name not in cut]
    if not whole:
        return "yes"
    if len(whole) < len(layers):
        return f"{len(layers) - len(whole)} of {len(layers)} layers"
    counts = Counter(reasons.get(name, "has no channels that can be followed") for name in whole)
    return f"no: {counts.most_common(1)[0][0]}"


def table(rows: Sequence[RowReport]) -> str:
    """Return the rows as a table for a terminal."""
    head = ("row", "from", "block", "output", "parameters", "deployed", "GFLOPs", "prunes")
    return console_table([head, *(_cells(row) for row in rows)], right=(4, 5, 6))


def _cells(row: RowReport) -> tuple[str, ...]:
    """Return the cells of a row's line, in the order of the table."""
    counts = (f"{row.parameters:,}", f"{row.deployed:,}", f"{row.gflops:.3f}")
    return (row.index, row.source, row.block, row.shape, *counts, row.pruning[:REASON])


def totals(model: Model, imgsz: int) -> str:
    """Return the line below the table: parameters and GFLOPs of the whole model."""
    info = model.info(imgsz)
    return (
        f"{info['parameters']:,} parameters, {info['deployed_parameters']:,} deployed"
        f" ({info['fused_parameters']:,} with implicit vectors, as tables count);"
        f" {info['gflops_fused']:.2f} GFLOPs deployed, {info['gflops']:.2f} in training form"
    )


def pruning_summary(
    model: Model, groups: Sequence[ChannelGroup], skipped: Sequence[Skipped]
) -> str:
    """Return lines on what pruning can cut.

    They name the number of channels and groups, each reason why layers stay whole with the layers,
    and the blocks that are cut inexactly.
    """
    layers: dict[str, list[str]] = {}
    for item in skipped:
        layers.setdefault(item.reason, []).append(item.layer)
    channels = sum(group.size for group in groups)
    lines = [
        f"{channels} channels in {len(groups)} groups can be cut, {len(skipped)} layers stay whole"
    ]
    lines += [f"  {reason[:REASON]}: {_some(names)}" for reason, names in layers.items()]
    lines += [
        f"  {name} is cut, but not provably: {reason[:REASON]}"
        for name, reason in inexact_blocks(model).items()
    ]
    return "\n".join(lines)


def _some(names: Sequence[str], most: int = 4) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

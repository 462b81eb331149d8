"""`check.py`: a model YAML row by row, before anything is trained."""

from collections import Counter
from collections.abc import Mapping, Sequence
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
REASON = 150  # characters of a reason


@dataclass(frozen=True)
class RowReport:
    """A line of the table.

    Parameters of the training form and of the deployed one, GFLOPs of the deployed one.
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
    """Print the table of every YAML; `UserError` names file and row of the first that cannot be
    built.
    """
    for cfg in opt.cfg:
        model = build_model(cfg, opt.nc)
        groups, skipped = run_preflight(model, (), opt.graph_time_limit) if opt.prune else ([], [])
        imgsz = whole_strides(opt.imgsz, int(model.stride.max()))
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
    """One line a row. Without groups the last column stays empty."""
    deployed = model.fuse()
    passed = macs_by_part(deployed, [f"model.{row.index}" for row in deployed.rows], imgsz)
    fates = fates_of_rows(model, groups, skipped)
    return [
        _report(row, after.module, passed[f"model.{row.index}"], fates)
        for row, after in zip(model.rows, deployed.rows, strict=True)
    ]


def _report(row: Row, deployed: nn.Module, passed: Passed, fates: Mapping[int, str]) -> RowReport:
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
    """Row -> `yes`, `3 of 4 layers`, `no: reason`, or nothing where a row has no
    layers of its own.
    """
    cut = {m.name for g in groups for m in g.members if m.kind in PRODUCERS}
    reasons = {s.layer: s.reason for s in skipped}
    inexact = inexact_blocks(model)
    fates: dict[int, str] = {}
    for row in model.rows if groups or skipped else []:
        place = f"model.{row.index}"
        layers = [
            f"{place}.{name}".rstrip(".")
            for name, m in row.module.named_modules()
            if isinstance(m, LAYERS)
        ]
        if not layers:
            continue
        able = [name for name in layers if name in cut]
        whole = Counter(
            reasons.get(name, "has no channels that can be followed")
            for name in layers
            if name not in cut
        )
        fate = (
            "yes"
            if not whole
            else (
                f"{len(able)} of {len(layers)} layers"
                if able
                else f"no: {whole.most_common(1)[0][0]}"
            )
        )
        marked = any(name == place or name.startswith(f"{place}.") for name in inexact)
        fates[row.index] = fate + " (inexact)" * marked
    return fates


def table(rows: Sequence[RowReport]) -> str:
    """Return the rows as a table for a terminal."""
    head = ("row", "from", "block", "output", "parameters", "deployed", "GFLOPs", "prunes")
    cells = [head] + [
        (
            r.index,
            r.source,
            r.block,
            r.shape,
            f"{r.parameters:,}",
            f"{r.deployed:,}",
            f"{r.gflops:.3f}",
            r.pruning[:REASON],
        )
        for r in rows
    ]
    return console_table(cells, right=(4, 5, 6))


def totals(model: Model, imgsz: int) -> str:
    """The line below the table."""
    info = model.info(imgsz)
    return (
        f"{info['parameters']:,} parameters, {info['deployed_parameters']:,} deployed"
        f" ({info['fused_parameters']:,} with implicit vectors, as tables count);"
        f" {info['gflops_fused']:.2f} GFLOPs deployed, {info['gflops']:.2f} in training form"
    )


def pruning_summary(
    model: Model, groups: Sequence[ChannelGroup], skipped: Sequence[Skipped]
) -> str:
    """What can be cut, every reason why something cannot with its layers, and what is cut
    inexactly.
    """
    layers: dict[str, list[str]] = {}
    for item in skipped:
        layers.setdefault(item.reason, []).append(item.layer)
    lines = [
        f"{sum(g.size for g in groups)} channels in {len(groups)} groups can be cut, {len(skipped)}"
        " layers stay whole"
    ]
    lines += [f"  {reason[:REASON]}: {_some(names)}" for reason, names in layers.items()]
    lines += [
        f"  {name} is cut, but not provably: {reason[:REASON]}"
        for name, reason in inexact_blocks(model).items()
    ]
    return "\n".join(lines)


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

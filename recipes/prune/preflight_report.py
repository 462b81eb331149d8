"""The findings of the preflight for people, on the console and as files.

Every module with parameters is listed with what pruning can do to it.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import nn

from models.widths import channel_dim, channels_of
from prune_methods import ChannelGroup, Member, Prunable
from prune_methods.groups.graph import IGNORED, PRODUCERS
from prune_methods.groups.inexact import inexact_blocks
from recipes.prune.report import write_csv
from utils.tables import console_table

PRUNABLE = "prunable"
TIED = 3  # names of tied layers that a line shows at most
DETAIL = 72  # characters of a reason that a line shows; files have the whole reason
SHORT = 20  # skipped layers that a run prints at most


@dataclass(frozen=True)
class LayerFate:
    """One row of the table: what pruning can do to a layer.

    Attributes:
        layer: name of the module or bare parameter.
        kind: its class.
        channels: number of output channels.
        status: prunable, ignored or not prunable.
        detail: the layers that it is tied to, or the reason.
    """

    layer: str
    kind: str
    channels: int
    status: str
    detail: str


def layer_fates(prunable: Prunable) -> list[LayerFate]:
    """Return a row for each module with parameters, in the order of the model.

    Bare parameters have rows of their own.
    """
    places = _places(prunable)
    reasons = {
        name: f"stays whole with {s.layer}: {s.reason}" for s in prunable.skipped for name in s.also
    }
    reasons |= {s.layer: s.reason for s in prunable.skipped}
    blocks = inexact_blocks(prunable.model)
    rows = []
    for name, kind, channels in _holders(prunable.model):
        status, detail = _fate(name, channels, places.get(name, []), reasons.get(name))
        around = next((block for block in blocks if name.startswith(f"{block}.")), None)
        if status == PRUNABLE and around is not None:
            detail += f"; inexact: {blocks[around]}"
        rows.append(LayerFate(name, kind, channels, status, detail))
    return rows


def _places(prunable: Prunable) -> dict[str, list[tuple[ChannelGroup, Member]]]:
    """Return for each layer the groups that its outputs belong to, with its member in each."""
    places: dict[str, list[tuple[ChannelGroup, Member]]] = {}
    for group in prunable.groups:
        for member in group.members:
            if member.kind != "in":
                places.setdefault(member.name, []).append((group, member))
    return places


def _holders(model: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Yield (name, class, output channels) of layers with parameters and of bare parameters."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if own and type(module).__module__.startswith("torch.nn"):
            yield name, type(module).__name__, channels_of(module)[0]
        else:
            for key, parameter in own.items():
                place = f"{name}.{key}".lstrip(".")
                yield place, "Parameter", parameter.shape[channel_dim(parameter)]


def _fate(
    name: str, channels: int, places: Sequence[tuple[ChannelGroup, Member]], reason: str | None
) -> tuple[str, str]:
    """Return (status, detail) of one row.

    Args:
        name: the layer.
        channels: number of its outputs.
        places: the groups that its outputs belong to, with its member in each.
        reason: why it is not pruned, where known.
    """
    if not places:
        reason = reason or "has no channels that can be followed"
        return "ignored" if IGNORED in reason else "not prunable", reason
    members = [m for group, _ in places for m in group.members]
    producers = sorted({m.name for m in members if m.kind in PRODUCERS and m.name != name})
    number = len({c for _, member in places for c in member.layer_channels.tolist()})
    part = f"{number} of {channels} channels; " if number < channels else ""
    if places[0][1].kind not in PRODUCERS:
        return PRUNABLE, f"{part}goes with {_shortened(producers)}"
    tied = f"tied to {_shortened(producers)}; " if producers else ""
    readers = len({m.name for m in members if m.kind == "in"})
    return PRUNABLE, f"{part}{tied}read by {readers} layer{'' if readers == 1 else 's'}"


def _shortened(names: Sequence[str]) -> str:
    """Return the first `TIED` names, and the number of the others."""
    more = f" and {len(names) - TIED} more" if len(names) > TIED else ""
    return ", ".join(names[:TIED]) + more


def table(rows: Sequence[LayerFate]) -> str:
    """Return all rows as a table for a terminal."""
    head = ("layer", "kind", "channels", "status", "tied to, or the reason")
    cells = [
        (row.layer, row.kind, str(row.channels), row.status, _line(row.detail)) for row in rows
    ]
    return console_table([head, *cells], right=(2,))


def _line(text: str) -> str:
    """Shorten a text to `DETAIL` characters."""
    return textwrap.shorten(text, DETAIL, placeholder=" ...")


def totals(prunable: Prunable) -> str:
    """Return one line with the numbers of channels, groups and skipped layers."""
    channels = sum(g.size for g in prunable.groups)
    return (
        f"{channels} channels in {len(prunable.groups)} groups can be cut,"
        f" {len(prunable.skipped)} layers cannot"
    )


def short_form(prunable: Prunable) -> str:
    """Return the counts, and a line for each of the first `SHORT` layers that are not pruned."""
    skipped = prunable.skipped
    width = max((len(s.layer) for s in skipped), default=0)
    lines = [f"  {s.layer:<{width}}  {_line(s.reason)}" for s in skipped[:SHORT]]
    if len(skipped) > SHORT:
        lines.append(f"  and {len(skipped) - SHORT} more, see skipped.csv")
    return "\n".join([totals(prunable), *lines])


def write_preflight(prunable: Prunable, folder: Path) -> None:
    """Write `preflight.csv`, every row of the table, and `skipped.csv`: layer, reason.

    Reasons are written in full; only lists of tied layers are shortened.
    """
    names = [field.name for field in fields(LayerFate)]
    rows = (list(asdict(row).values()) for row in layer_fates(prunable))
    write_csv(folder / "preflight.csv", names, rows)
    skipped = ((s.layer, s.reason) for s in prunable.skipped)
    write_csv(folder / "skipped.csv", ("layer", "reason"), skipped)

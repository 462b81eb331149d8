"""Before anything is cut: which channels can go, and of every other layer the reason why they
cannot.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd
from tqdm import tqdm

from prune_methods.groups.graph import (
    LIBRARY_ERRORS,
    PRODUCERS,
    ChannelGroup,
    Graph,
    Member,
    Skipped,
    Whole,
    build_graph,
    layers_to_keep,
    one_line,
    output_width,
    trace,
    unit_member,
)
from prune_methods.groups.group_norm import merge_by_group_norm
from prune_methods.preflight.deadline import Deadline, OutOfTime
from prune_methods.preflight.probe import largest_passing, probe
from utils.errors import UserError

TIME_LIMIT = 120.0  # seconds
LATE = "not done in time"


def find_groups(model: nn.Module, ignore: Sequence[str] = ()) -> list[ChannelGroup]:
    """The prunable groups of a model, in the order of its layers; see `preflight`."""
    return run_preflight(model, ignore)[0]


def run_preflight(
    model: nn.Module,
    ignore: Sequence[str] = (),
    time_limit: float = TIME_LIMIT,
    progress: bool = False,
) -> tuple[list[ChannelGroup], list[Skipped]]:
    """Every layer is either in a group that can be cut, or listed with the reason why not.

    `model` is a training form (with its batch norms) and is left untouched. `ignore` are row
    numbers (`24`), module names or globs (`model.*.cv3`) whose outputs stay whole. Rows that cannot
    be traced stay whole with all that is tied to them, and so do groups that fail the probe
    (probe.py). `time_limit`: seconds for building the graph, and again for following the layers
    (see Deadline). `UserError` where a pattern matches nothing or nothing can be traced at all.
    """
    whole = layers_to_keep(model, ignore)
    graph, untraceable = traceable_graph(model, Deadline(time_limit))
    found, skipped = _follow_layers(graph, whole, Deadline(time_limit), progress)
    found, failing = probe(model, found)
    for group, reason in failing:
        skipped += _stay_whole(group.name, group.members, reason)
    return found, skipped + _not_followed(graph, untraceable, found, skipped)


def traceable_graph(model: nn.Module, deadline: Deadline) -> tuple[Graph, dict[str, str]]:
    """The graph, and the rows whose inside had to stay out of it with the reason; none where the
    library can follow all.
    """
    rows = [name for name, _ in _rows(model)]
    graphs: list[Graph] = []
    late = UserError(
        f"pruning: the graph was not built within {deadline.seconds:g} s; raise --graph-time-limit"
    )

    def failure(transparent: list[str]) -> str | None:
        if deadline.over:
            raise late
        try:
            with deadline.attempt():
                graphs[:] = [build_graph(model, set(rows).difference(transparent))]
        except LIBRARY_ERRORS as error:
            return one_line(error)
        except OutOfTime:
            return LATE
        return None

    _, rejected = largest_passing(rows, failure)
    if not graphs and LATE in [reason for _, reason in rejected]:
        raise late
    if not graphs:
        raise UserError(
            f"pruning: the dependency graph of this model cannot be built ({rejected[0][1]})"
        )
    classes = {name: type(module).__name__ for name, module in _rows(model)}
    return graphs[0], {
        name: f"{_title(name, classes[name])} cannot be traced ({reason})"
        for name, reason in rejected
    }


def _rows(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """A detector's rows, or the children of any other model, by name."""
    inner = getattr(model, "model", None)
    if isinstance(inner, nn.ModuleList | nn.Sequential):
        return [(f"model.{name}", row) for name, row in inner.named_children()]
    return list(model.named_children())


def _title(name: str, kind: str) -> str:
    return f"row {name.removeprefix('model.')} ({kind})"


def _follow_layers(
    graph: Graph, whole: Whole, deadline: Deadline, progress: bool
) -> tuple[list[ChannelGroup], list[Skipped]]:
    """The groups that start at each layer that makes channels, in their order."""
    found: list[ChannelGroup] = []
    skipped: list[Skipped] = []
    grouped: dict[str, set[int]] = {}  # output channels that already are in a group
    units = _unit_groups(graph)
    bar = tqdm(
        list(_producers(graph)),
        desc="Preflight",
        leave=False,
        dynamic_ncols=True,
        disable=None if progress else True,
    )
    for name in bar:
        channels = [c for c in range(output_width(graph, name)) if c not in grouped.get(name, ())]
        if not channels:
            continue
        if name in units:
            group = units[name]
            reason = next(
                (whole[m.name] for m in group.members if m.kind in PRODUCERS and m.name in whole),
                None,
            )
        else:
            members, reason = _trace_in_time(graph, name, channels, whole, deadline)
            group = ChannelGroup(name, len(channels), tuple(members))
        for member in group.members:
            if member.kind in PRODUCERS:
                grouped.setdefault(member.name, set()).update(member.layer_channels.tolist())
        result = reason or merge_by_group_norm(group, graph.modules)
        if isinstance(result, str):
            skipped += _stay_whole(name, group.members, result)
        else:
            found += _divided(result)
    return found, skipped


def _unit_groups(graph: Graph) -> dict[str, ChannelGroup]:
    """The groups of the blocks with a `unit_rule`, by the first layer that makes them."""
    found: dict[str, ChannelGroup] = {}
    for block, module in graph.modules.items():
        if rule := getattr(module, "unit_rule", None):
            members = tuple(unit_member(block, inner) for inner in rule())
            first = next(m.name for m in members if m.kind in PRODUCERS)
            found[first] = ChannelGroup(
                first, 1 + max(int(m.group_channels.max()) for m in members), members
            )
    return found


def _producers(graph: Graph) -> Iterator[str]:
    """Layers that make channels, and blocks whose rule says that they do; not what is hidden inside
    a stand-in.
    """
    for name, module in graph.modules.items():
        if name in graph.opaque_modules:
            if any(inner.of == "out" for inner in graph.opaque_modules[name].rule):
                yield name
        elif isinstance(module, _ConvNd | nn.Linear) and _around(graph, name) is None:
            yield name


def _around(graph: Graph, name: str) -> str | None:
    """The stand-in that hides a layer."""
    return next((outer for outer in graph.opaque_modules if name.startswith(f"{outer}.")), None)


def _trace_in_time(
    graph: Graph, name: str, channels: list[int], whole: Whole, deadline: Deadline
) -> tuple[list[Member], str | None]:
    late = f"not followed within the time limit of {deadline.seconds:g} s"
    if deadline.over:
        return [], late
    try:
        with deadline.attempt():
            return trace(graph, name, channels, whole)
    except OutOfTime:
        return [], late


def _stay_whole(name: str, members: Iterable[Member], reason: str) -> list[Skipped]:
    """An entry for each layer that makes the channels; the first one carries the norms and
    parameters that share them.
    """
    members = list(members)
    producers = list(dict.fromkeys(m.name for m in members if m.kind in PRODUCERS)) or [name]
    also = tuple(dict.fromkeys(m.name for m in members if m.kind in ("norm", "param")))
    return [Skipped(producer, reason, () if i else also) for i, producer in enumerate(producers)]


def _divided(group: ChannelGroup) -> list[ChannelGroup]:
    """Several groups where a layer has only some of the channels (a block's inner one), so that
    none loses all that it has.

    Limits are per group. Layers that read or pass on a part without a choice (`in`, `norm`) never
    lose more than others give.
    """
    producers = [m for m in group.members if m.kind in PRODUCERS]
    seen: dict[bytes, list[int]] = {}
    for channel in range(group.size):
        key = bytes(bool((m.group_channels == channel).any()) for m in producers)
        seen.setdefault(key, []).append(channel)
    if len(seen) == 1:
        return [group]
    return [
        _part(group, np.array(channels), number) for number, channels in enumerate(seen.values(), 1)
    ]


def _part(group: ChannelGroup, channels: np.ndarray, number: int) -> ChannelGroup:
    position = np.full(group.size, -1)
    position[channels] = np.arange(len(channels))
    members = []
    for member in group.members:
        new = position[member.group_channels]
        if (new >= 0).any():
            members.append(
                replace(
                    member,
                    layer_channels=member.layer_channels[new >= 0],
                    group_channels=new[new >= 0],
                )
            )
    return ChannelGroup(
        group.name if number == 1 else f"{group.name}#{number}", len(channels), tuple(members)
    )


def _not_followed(
    graph: Graph,
    untraceable: dict[str, str],
    found: Sequence[ChannelGroup],
    skipped: Sequence[Skipped],
) -> list[Skipped]:
    """Layers hidden in stand-ins that are in no group, with the reason."""
    done = {m.name for g in found for m in g.members if m.kind != "in"} | {s.layer for s in skipped}
    hidden: list[Skipped] = []
    for outer in graph.opaque_modules:
        kind = type(graph.modules[outer]).__name__
        reason = untraceable.get(outer, f"the rule of its block ({kind}) lets its outputs stay")
        inside = [
            name
            for name in graph.names.values()
            if name.startswith(f"{outer}.") and name not in done
        ]
        layers = [
            name for name in inside if isinstance(graph.modules.get(name), _ConvNd | nn.Linear)
        ]
        also = tuple(name for name in inside if name not in layers)
        hidden += [Skipped(name, reason, () if i else also) for i, name in enumerate(layers)]
    return hidden

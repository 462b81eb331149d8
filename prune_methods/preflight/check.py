"""Preflight: find the channels that can be cut, and for every other layer the reason why not."""

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
    NotPruned,
    Skipped,
    build_graph,
    layers_to_keep,
    one_line,
)
from prune_methods.groups.group_norm import merge_by_group_norm
from prune_methods.groups.trace import output_width, trace, unit_member
from prune_methods.preflight.deadline import Deadline, OutOfTime
from prune_methods.preflight.probe import largest_passing, probe
from utils.errors import UserError

TIME_LIMIT = 120.0  # seconds
LATE = "not done in time"


def find_groups(model: nn.Module, ignore: Sequence[str] = ()) -> list[ChannelGroup]:
    """Return the prunable groups of a model in the order of its layers; see `run_preflight`."""
    return run_preflight(model, ignore)[0]


def run_preflight(
    model: nn.Module,
    ignore: Sequence[str] = (),
    time_limit: float = TIME_LIMIT,
    progress: bool = False,
) -> tuple[list[ChannelGroup], list[Skipped]]:
    """Sort every layer: into a group that can be cut, or into a list with the reason why not.

    Rows that cannot be traced are not pruned, nor is anything that is coupled to them, nor a group
    that fails the probe (probe.py).

    Args:
        model: the training form, with its batch norms; never changed.
        ignore: row numbers (`24`), module names or globs (`model.*.cv3`) whose outputs are not to
            be pruned.
        time_limit: seconds for building the graph, and again for following the layers (see
            `Deadline`).
        progress: show a bar.

    Returns:
        The groups in the order of the layers, and the layers that are not pruned.

    Raises:
        UserError: where a pattern matches nothing or nothing can be traced at all.
    """
    not_pruned = layers_to_keep(model, ignore)
    graph, untraceable = traceable_graph(model, Deadline(time_limit))
    groups, skipped = _follow_layers(graph, not_pruned, Deadline(time_limit), progress)
    groups, failing = probe(model, groups)
    for group, reason in failing:
        skipped += _skipped(group.name, group.members, reason)
    return groups, skipped + _hidden_layers(graph, untraceable, groups, skipped)


def traceable_graph(model: nn.Module, deadline: Deadline) -> tuple[Graph, dict[str, str]]:
    """Build the graph with as many rows as the library can follow.

    Returns:
        The graph, and the rows whose inside is left out of it, each with the reason.

    Raises:
        UserError: where no graph can be built, or none within the time.
    """
    rows = [name for name, _ in _rows(model)]
    graphs: list[Graph] = []
    timed_out = UserError(
        f"pruning: the graph was not built within {deadline.seconds:g} s; raise --graph-time-limit"
    )

    def failure(transparent: list[str]) -> str | None:
        if deadline.over:
            raise timed_out
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
        raise timed_out
    if not graphs:
        raise UserError(
            f"pruning: the dependency graph of this model cannot be built ({rejected[0][1]})"
        )
    titles = {name: _title(name, type(module).__name__) for name, module in _rows(model)}
    reasons = {name: f"{titles[name]} cannot be traced ({reason})" for name, reason in rejected}
    return graphs[0], reasons


def _rows(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the rows of a detector, or the children of any other model, with their names."""
    inner = getattr(model, "model", None)
    if isinstance(inner, nn.ModuleList | nn.Sequential):
        return [(f"model.{name}", row) for name, row in inner.named_children()]
    return list(model.named_children())


def _title(name: str, kind: str) -> str:
    return f"row {name.removeprefix('model.')} ({kind})"


def _follow_layers(
    graph: Graph, not_pruned: NotPruned, deadline: Deadline, progress: bool
) -> tuple[list[ChannelGroup], list[Skipped]]:
    """Follow each layer that computes channels, in the order of the model.

    Args:
        graph: the graph of the model.
        not_pruned: layers whose outputs are not to be pruned, with the reasons.
        deadline: the time for all layers together.
        progress: show a bar.

    Returns:
        The groups, not yet probed, and the layers that are not pruned.
    """
    groups: list[ChannelGroup] = []
    skipped: list[Skipped] = []
    grouped: dict[str, set[int]] = {}  # layer -> output channels that are in a group already
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
            reason = _exclusion(group, not_pruned)
        else:
            members, reason = _trace_in_time(graph, name, channels, not_pruned, deadline)
            group = ChannelGroup(name, len(channels), tuple(members))
        for member in group.members:
            if member.kind in PRODUCERS:
                grouped.setdefault(member.name, set()).update(member.layer_channels.tolist())
        result = reason or merge_by_group_norm(group, graph.modules)
        if isinstance(result, str):
            # A layer of a kind that is never cut stands alone; the others list themselves.
            producers = {m.name for m in group.members if m.kind in PRODUCERS}
            alone = bool(producers) and name not in producers
            skipped += _skipped(name, () if alone else group.members, result)
        else:
            groups += _divided(result)
    return groups, skipped


def _exclusion(group: ChannelGroup, not_pruned: NotPruned) -> str | None:
    """Return the reason of the first member whose outputs are not to be pruned, or None."""
    producers = (m.name for m in group.members if m.kind in PRODUCERS)
    return next((not_pruned[name] for name in producers if name in not_pruned), None)


def _unit_groups(graph: Graph) -> dict[str, ChannelGroup]:
    """Return the groups of all blocks with a `unit_rule`, by the first layer that computes them."""
    groups: dict[str, ChannelGroup] = {}
    for block, module in graph.modules.items():
        if rule := getattr(module, "unit_rule", None):
            members = tuple(unit_member(block, inner) for inner in rule())
            first = next(m.name for m in members if m.kind in PRODUCERS)
            size = 1 + max(int(m.group_channels.max()) for m in members)
            groups[first] = ChannelGroup(first, size, members)
    return groups


def _producers(graph: Graph) -> Iterator[str]:
    """Yield the layers that compute channels, and the blocks that do so by their rule.

    Layers hidden inside a stand-in are left out.
    """
    for name, module in graph.modules.items():
        if name in graph.opaque_modules:
            if any(inner.of == "out" for inner in graph.opaque_modules[name].rule):
                yield name
        elif isinstance(module, _ConvNd | nn.Linear) and not _is_hidden(graph, name):
            yield name


def _is_hidden(graph: Graph, name: str) -> bool:
    """Return whether a layer lies inside a stand-in."""
    return any(name.startswith(f"{outer}.") for outer in graph.opaque_modules)


def _trace_in_time(
    graph: Graph, name: str, channels: list[int], not_pruned: NotPruned, deadline: Deadline
) -> tuple[list[Member], str | None]:
    """Call `trace`; where time is over, return no members and the time limit as the reason."""
    timed_out = f"not followed within the time limit of {deadline.seconds:g} s"
    if deadline.over:
        return [], timed_out
    try:
        with deadline.attempt():
            return trace(graph, name, channels, not_pruned)
    except OutOfTime:
        return [], timed_out


def _skipped(name: str, members: Iterable[Member], reason: str) -> list[Skipped]:
    """List the layers that compute the channels of a group that is not pruned.

    The first entry carries the norms and bare parameters of the group.

    Args:
        name: the layer to list where no member computes channels.
        members: the members of the group.
        reason: why it is not pruned.
    """
    members = list(members)
    producers = list(dict.fromkeys(m.name for m in members if m.kind in PRODUCERS)) or [name]
    also = tuple(dict.fromkeys(m.name for m in members if m.kind in ("norm", "param")))
    return [Skipped(producer, reason, () if i else also) for i, producer in enumerate(producers)]


def _divided(group: ChannelGroup) -> list[ChannelGroup]:
    """Divide a group so that each part has the same producers for all of its channels.

    A layer inside a block may compute only some channels of the group. Limits hold per group: in
    the undivided group such a layer could lose all of its channels. Members of the kinds `in` and
    `norm` never decide, as they lose what the producers lose.
    """
    producers = [m for m in group.members if m.kind in PRODUCERS]
    parts: dict[bytes, list[int]] = {}  # which producers have the channel -> channels
    for channel in range(group.size):
        key = bytes(bool((m.group_channels == channel).any()) for m in producers)
        parts.setdefault(key, []).append(channel)
    if len(parts) == 1:
        return [group]
    numbered = enumerate(parts.values(), 1)
    return [_part(group, np.array(channels), number) for number, channels in numbered]


def _part(group: ChannelGroup, channels: np.ndarray, number: int) -> ChannelGroup:
    """Return some channels of a group as a group of their own.

    Args:
        group: the undivided group.
        channels: int (n,), channels of the part.
        number: number of the part from 1; it is added to the name from 2 on.
    """
    position = np.full(group.size, -1)
    position[channels] = np.arange(len(channels))
    members = []
    for member in group.members:
        new = position[member.group_channels]
        kept = new >= 0
        if kept.any():
            in_layer = member.layer_channels[kept]
            members.append(replace(member, layer_channels=in_layer, group_channels=new[kept]))
    name = group.name if number == 1 else f"{group.name}#{number}"
    return ChannelGroup(name, len(channels), tuple(members))


def _hidden_layers(
    graph: Graph,
    untraceable: dict[str, str],
    groups: Sequence[ChannelGroup],
    skipped: Sequence[Skipped],
) -> list[Skipped]:
    """List the layers inside stand-ins that are neither in a group nor skipped yet.

    Args:
        graph: the graph of the model.
        untraceable: rows that cannot be traced, with the reasons.
        groups: all groups that can be cut.
        skipped: layers that are listed already.
    """
    listed = {m.name for g in groups for m in g.members if m.kind != "in"}
    listed |= {s.layer for s in skipped}
    hidden: list[Skipped] = []
    for outer in graph.opaque_modules:
        kind = type(graph.modules[outer]).__name__
        reason = untraceable.get(outer, f"the rule of its block ({kind}) lets its outputs stay")
        inside = [n for n in graph.names.values() if n.startswith(f"{outer}.") and n not in listed]
        layers = [n for n in inside if isinstance(graph.modules.get(n), _ConvNd | nn.Linear)]
        also = tuple(name for name in inside if name not in layers)
        hidden += [Skipped(name, reason, () if i else also) for i, name in enumerate(layers)]
    return hidden

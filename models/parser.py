"""Model YAML -> modules.

Rows are `[from, repeats, Block, args]`, as YOLOv5 and YOLOv7 write them; see docs/yaml_format.md.

Channels and strides come from running each row once on a small zero image: no block has to declare
its output.
"""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.registry import BLOCKS, BuildContext
from utils.errors import UserError, suggest

KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", "activation", "ch", "backbone", "head")
TRACE_SIZE = 128  # px: a multiple of every usual stride, and small enough to cost milliseconds
MAX_REPEATS = 1000
NAMED_VALUES = {"None": None, "True": True, "False": False}


@dataclass(frozen=True)
class RowSpec:
    """Where a row stands. Indices count outputs: a row with several outputs takes several."""

    index: int
    source: tuple[int, ...]
    """Output indices that it reads; -1 is the image."""
    listed: bool
    """Whether the module gets a list (its `from` is one) or a tensor."""
    block: str
    tag: str | None
    outputs: int


@dataclass
class ParsedRows:
    """What a YAML says, while it is read."""

    where: str
    cfg: dict[str, Any]
    specs: list[RowSpec] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    """By output index; the further outputs of a row are an `nn.Identity` each."""
    outputs: list[Tensor | None] = field(default_factory=list)
    """What each output gives for the zero image; None where a backbone has no map of that stride.
    """
    tags: dict[str, int] = field(default_factory=dict)


def parse(cfg: dict[str, Any], where: str) -> ParsedRows:
    """Build every row of a parsed YAML.

    Errors are `UserError`s that name `where`, section, row and what to mend.
    """
    check_keys(cfg, where)
    plan = ParsedRows(where, cfg)
    with torch.no_grad():
        image = torch.zeros(1, cfg.get("ch", 3), TRACE_SIZE, TRACE_SIZE)
        for section in ("backbone", "head"):
            for number, row in enumerate(cfg[section]):
                place = f"{where}: {section} row {number} {_short(row)}"
                try:
                    _add_row(plan, row, image)
                except UserError as error:
                    raise UserError(f"{place}: {error}") from error
                except (
                    TypeError,
                    ValueError,
                    RuntimeError,
                    AssertionError,
                    IndexError,
                    KeyError,
                    AttributeError,
                ) as error:
                    reason = (str(error) or type(error).__name__).splitlines()[0]
                    raise UserError(
                        f"{place}: this block cannot be built with these arguments and inputs:"
                        f" {reason}"
                    ) from error
    return plan


def check_keys(cfg: dict[str, Any], where: str) -> None:
    """The top level of a model YAML."""
    for key in cfg:
        if key not in KEYS:
            raise UserError(
                f"{where}: unknown key '{key}'{suggest(str(key), KEYS)} (known: {', '.join(KEYS)})"
            )
    for key in ("nc", "anchors", "backbone", "head"):
        if key not in cfg:
            raise UserError(
                f"{where}: '{key}' is missing; a model YAML has nc, anchors, backbone and head"
            )
    for section in ("backbone", "head"):
        if not isinstance(cfg[section], list):
            raise UserError(
                f"{where}: {section}: expected a list of rows [from, repeats, Block, args]"
            )
    for key, kinds in (
        ("nc", (int,)),
        ("ch", (int,)),
        ("depth_multiple", (int, float)),
        ("width_multiple", (int, float)),
    ):
        value = cfg.get(key, 1)
        if type(value) not in kinds or not 0 < value < math.inf:
            raise UserError(
                f"{where}: {key}: {value!r} is not"
                f" {'an integer' if kinds == (int,) else 'a number'} above 0"
            )
    _check_anchors(cfg["anchors"], where)


def _check_anchors(anchors: Any, where: str) -> None:
    """A number of anchors a level, or a list a level of w, h, w, h ... in pixels, equally long."""
    if type(anchors) is int and anchors > 0:
        return
    if (
        not isinstance(anchors, list)
        or not anchors
        or not all(isinstance(a, list) for a in anchors)
    ):
        raise UserError(
            f"{where}: anchors: expected a number of anchors a level, or a list of w, h, w, h ..."
            " for each level"
        )
    if not all(
        type(value) in (int, float) and 0 < value < math.inf for level in anchors for value in level
    ):
        raise UserError(f"{where}: anchors: widths and heights are pixels, numbers above 0")
    lengths = {len(level) for level in anchors}
    if len(lengths) != 1 or 0 in lengths or lengths.pop() % 2:
        sizes = ", ".join(str(len(level)) for level in anchors)
        raise UserError(
            f"{where}: anchors: every level needs the same even number of values w, h, w, h ...;"
            f" found {sizes}"
        )


def _add_row(plan: ParsedRows, row: Any, image: Tensor) -> None:
    """Build one row, run it, append it to the plan."""
    source_item, repeats, name, args, tag = _fields(row)
    index = len(plan.outputs)
    source = _source(source_item, index, plan.tags)
    inputs = [image if i < 0 else _map(plan, i) for i in source]
    block, context = BLOCKS[name], _site(plan.cfg, inputs, repeats)
    module = _build(block, name, args, context)
    listed = isinstance(source_item, list)
    x: Any = inputs if listed else inputs[0]
    if context.repeats > 1 and not getattr(block, "repeats_inside", False):
        copies = [module]
        for _ in range(context.repeats - 1):
            x = run_once(copies[-1], x)
            copies.append(_build(block, name, args, _site(plan.cfg, [x], 1)))
        module, x = nn.Sequential(*copies), inputs if listed else inputs[0]
    result = run_once(module, x)
    single = isinstance(result, Tensor) or getattr(
        block, "is_head", False
    )  # a head's maps are the model's result, not rows
    outputs = [result] if single else list(result)
    plan.specs.append(RowSpec(index, source, listed, name, tag, len(outputs)))
    plan.modules += [module, *(nn.Identity() for _ in outputs[1:])]
    plan.outputs += outputs
    if tag is not None:
        if tag in plan.tags:
            raise UserError(f"the tag '{tag}' is taken by row {plan.tags[tag]}; choose another")
        plan.tags[tag] = index


def _map(plan: ParsedRows, index: int) -> Tensor:
    """What an output gives; `UserError` where it is one that its row leaves empty."""
    found = plan.outputs[index]
    if found is None:
        row = next(spec for spec in plan.specs if index < spec.index + spec.outputs)
        full = [i for i in range(row.index, row.index + row.outputs) if plan.outputs[i] is not None]
        raise UserError(
            f"from: output {index} of {row.block} is empty; it gives maps as outputs"
            f" {', '.join(map(str, full))}"
        )
    return found


def _fields(row: Any) -> tuple[Any, int, str, Any, str | None]:
    """`[from, repeats, Block, args]` or with a tag behind; checked for their types."""
    if not isinstance(row, list) or len(row) not in (4, 5):
        raise UserError(
            "expected [from, repeats, Block, args] or [from, repeats, Block, args, tag]"
        )
    source, repeats, name, args = row[:4]
    tag = row[4] if len(row) == 5 else None
    if type(repeats) is not int or not 1 <= repeats <= MAX_REPEATS:
        raise UserError(f"repeats is {repeats!r}; expected a number from 1 to {MAX_REPEATS}")
    if not isinstance(name, str):
        raise UserError(f"the block is {name!r}; expected a name")
    if not isinstance(args, list | dict):
        raise UserError(f"args is {args!r}; expected a list or a mapping")
    if tag is not None and not isinstance(tag, str):
        raise UserError(f"the tag is {tag!r}; expected a name")
    return source, repeats, name, args, tag


def _source(item: Any, index: int, tags: dict[str, int]) -> tuple[int, ...]:
    """Output indices of `from`: ints (negative ones count back from this row), tags, or a list of
    them.
    """
    found = []
    for one in item if isinstance(item, list) else [item]:
        if isinstance(one, str):
            if one not in tags:
                raise UserError(f"from: no row above has the tag '{one}'{suggest(one, tags)}")
            found.append(tags[one])
            continue
        absolute = one + index if type(one) is int and one < 0 else one
        first = -1 if index == 0 else 0  # only the first row reads the image
        if type(absolute) is not int or not first <= absolute < index:
            raise UserError(f"from: {one!r} is no row above this one (model.{index})")
        found.append(absolute)
    if not found:
        raise UserError("from: names no input")
    return tuple(found)


def _site(cfg: dict[str, Any], inputs: list[Any], repeats: int) -> BuildContext:
    depth = cfg.get("depth_multiple", 1.0)
    return BuildContext(
        in_channels=tuple(x.shape[1] for x in inputs),
        in_strides=tuple(TRACE_SIZE / x.shape[2] for x in inputs),
        nc=cfg["nc"],
        anchors=cfg["anchors"],
        width=cfg.get("width_multiple", 1.0),
        act=cfg.get("activation") or "SiLU",
        repeats=max(round(repeats * depth), 1) if repeats > 1 else 1,
    )


def _build(
    block: Any, name: str, args: list[Any] | dict[str, Any], context: BuildContext
) -> nn.Module:
    """Call the block's `from_yaml` once its arguments are known to fit."""
    names = {**NAMED_VALUES, "nc": context.nc, "anchors": context.anchors}
    positional = [_named(a, names) for a in args] if isinstance(args, list) else []
    keywords = {str(k): _named(a, names) for k, a in args.items()} if isinstance(args, dict) else {}
    signature = inspect.signature(block.from_yaml)
    try:
        signature.bind(context, *positional, **keywords)
    except TypeError as error:
        wanted = [
            str(p).split(":")[0].split(" =")[0] for p in list(signature.parameters.values())[1:]
        ]
        raise UserError(f"the arguments do not fit {name}({', '.join(wanted)}): {error}") from None
    return block.from_yaml(context, *positional, **keywords)


def _named(value: Any, names: dict[str, Any]) -> Any:
    """`None`, `nc`, `anchors` in their places; every other value stays the literal that it is."""
    return names.get(value, value) if isinstance(value, str) else value


def run_once(module: nn.Module, x: Any) -> Any:
    """What a new module gives in eval mode, where no statistics change."""
    result = module.eval()(x)
    module.train()
    return result


def _short(row: Any) -> str:
    """A row as its YAML shows it, cut at 80 characters."""
    text = (
        "[" + ", ".join(_short(v) if isinstance(v, list) else str(v) for v in row) + "]"
        if isinstance(row, list)
        else str(row)
    )
    return text if len(text) <= 80 else text[:77] + "..."

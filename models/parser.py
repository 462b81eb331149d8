"""Build the modules of a model from its YAML.

Rows are `[from, repeats, Block, args]`, as YOLOv5 and YOLOv7 write them; see docs/yaml_format.md.

Each row runs once on a small zero image, which gives the channels and strides of its output, so
that no block has to declare them.
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
TRACE_SIZE = 128  # px; a multiple of every usual stride, and small enough to run in milliseconds
MOST_SETTING = 64  # larger numbers are no reduction, kernel size or factor, but a width
MAX_REPEATS = 1000
NAMED_VALUES = {"None": None, "True": True, "False": False}


@dataclass(frozen=True)
class RowSpec:
    """Place of a row in the model.

    Indices count outputs: a row with several outputs takes several indices.
    """

    index: int
    source: tuple[int, ...]
    """Indices of the outputs that the row reads; -1 is the image."""
    listed: bool
    """Whether the module gets a list (`from` is a list) or a single tensor."""
    block: str
    tag: str | None
    outputs: int
    """Number of outputs."""


@dataclass
class ParsedRows:
    """The rows of a YAML that have been built so far."""

    where: str
    """File (or other source) that errors name."""
    cfg: dict[str, Any]
    """The parsed YAML."""
    specs: list[RowSpec] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    """Modules by output index; each further output of a row has an `nn.Identity`."""
    outputs: list[Tensor | None] = field(default_factory=list)
    """Output tensors for the zero image; None where a backbone has no map of that stride."""
    tags: dict[str, int] = field(default_factory=dict)
    """Output index of each tag."""


def parse(cfg: dict[str, Any], where: str) -> ParsedRows:
    """Build all rows of a parsed YAML.

    Args:
        cfg: The parsed YAML.
        where: Source of the YAML, named in errors.

    Raises:
        UserError: Naming `where`, the section, the row and what to correct.
    """
    check_keys(cfg, where)
    rows = ParsedRows(where, cfg)
    with torch.no_grad():
        image = torch.zeros(1, cfg.get("ch", 3), TRACE_SIZE, TRACE_SIZE)
        for section in ("backbone", "head"):
            for number, row in enumerate(cfg[section]):
                place = f"{where}: {section} row {number} {_short(row)}"
                try:
                    _add_row(rows, row, image)
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
    return rows


def check_keys(cfg: dict[str, Any], where: str) -> None:
    """Check keys and values at the top level of a model YAML.

    Raises:
        UserError: For an unknown or missing key, or a value out of its range.
    """
    for key in cfg:
        if key not in KEYS:
            raise UserError(
                f"{where}: unknown key '{key}'{suggest(str(key), KEYS)} (known: {', '.join(KEYS)})"
            )
    for key in ("nc", "backbone", "head"):
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
    if "anchors" in cfg:
        _check_anchors(cfg["anchors"], where)


def _check_anchors(anchors: Any, where: str) -> None:
    """Check anchors: a number for each level, or for each level a list w, h, w, h ... in pixels.

    The lists must be equally long.
    """
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


def _add_row(rows: ParsedRows, row: Any, image: Tensor) -> None:
    """Build one row, run it on the zero image, and append it to the rows built so far."""
    source_item, repeats, name, args, tag = _fields(row)
    index = len(rows.outputs)
    source = _source(source_item, index, rows.tags)
    inputs = [image if i < 0 else _output(rows, i) for i in source]
    listed = isinstance(source_item, list)
    x: Any = inputs if listed else inputs[0]
    block, context = BLOCKS[name], _context(rows.cfg, inputs, repeats)
    module = _build(block, name, args, context)
    if context.repeats > 1 and not getattr(block, "repeats_inside", False):
        copies, copy_input = [module], x
        for _ in range(context.repeats - 1):
            copy_input = run_once(copies[-1], copy_input)
            copies.append(_build(block, name, args, _context(rows.cfg, [copy_input], 1)))
        module = nn.Sequential(*copies)
    result = run_once(module, x)
    # the maps of a head are the model's result, not outputs that other rows read
    single = isinstance(result, Tensor) or getattr(block, "is_head", False)
    outputs = [result] if single else list(result)
    rows.specs.append(RowSpec(index, source, listed, name, tag, len(outputs)))
    rows.modules += [module, *(nn.Identity() for _ in outputs[1:])]
    rows.outputs += outputs
    if tag is not None:
        if tag in rows.tags:
            raise UserError(f"the tag '{tag}' is taken by row {rows.tags[tag]}; choose another")
        rows.tags[tag] = index


def _output(rows: ParsedRows, index: int) -> Tensor:
    """Return the tensor of an output.

    Raises:
        UserError: Where the row of the output leaves it empty.
    """
    found = rows.outputs[index]
    if found is None:
        row = next(spec for spec in rows.specs if index < spec.index + spec.outputs)
        indices = range(row.index, row.index + row.outputs)
        filled = [str(i) for i in indices if rows.outputs[i] is not None]
        raise UserError(
            f"from: output {index} of {row.block} is empty; it gives maps as outputs"
            f" {', '.join(filled)}"
        )
    return found


def _fields(row: Any) -> tuple[Any, int, str, Any, str | None]:
    """Return from, repeats, block, args and tag (or None) of a row.

    Raises:
        UserError: Where a field is missing or of the wrong type.
    """
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
    """Return the output indices that `from` means; `index` is the row's own.

    `item` is an int (a negative one counts back from this row), a tag, or a list of them.
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


def _context(cfg: dict[str, Any], inputs: list[Any], repeats: int) -> BuildContext:
    """Return the context of a row that reads `inputs`; `repeats` is not yet scaled by depth."""
    depth = cfg.get("depth_multiple", 1.0)
    return BuildContext(
        in_channels=tuple(x.shape[1] for x in inputs),
        in_strides=tuple(TRACE_SIZE / x.shape[2] for x in inputs),
        nc=cfg["nc"],
        anchors=cfg.get("anchors"),
        width=cfg.get("width_multiple", 1.0),
        act=cfg.get("activation") or "SiLU",
        repeats=max(round(repeats * depth), 1) if repeats > 1 else 1,
    )


def _build(
    block: Any, name: str, args: list[Any] | dict[str, Any], context: BuildContext
) -> nn.Module:
    """Call the block's `from_yaml`, after checking that the arguments fit its signature."""
    names = {**NAMED_VALUES, "nc": context.nc, "anchors": context.anchors}
    positional, keywords = [], {}
    if isinstance(args, list):
        positional = [_named(value, names) for value in args]
        if getattr(block, "keeps_channels", False):
            positional = _without_width(block, name, positional, context)
    else:
        keywords = {str(key): _named(value, names) for key, value in args.items()}
    signature = inspect.signature(block.from_yaml)
    try:
        signature.bind(context, *positional, **keywords)
    except TypeError as error:
        _, *parameters = signature.parameters.values()  # the first one is the context
        wanted = [str(p).split(":")[0].split(" =")[0] for p in parameters]
        raise UserError(f"the arguments do not fit {name}({', '.join(wanted)}): {error}") from None
    return block.from_yaml(context, *positional, **keywords)


def _without_width(block: Any, name: str, args: list[Any], context: BuildContext) -> list[Any]:
    """Return the arguments of a block that keeps its channels, without the width.

    Public YAMLs put the width first, as `CBAM, [1024, 7]`, or input and output width.

    Raises:
        UserError: For a first number that can only be a width, but is not that of the inputs.
    """
    widths = [context.names_width(value) for value in args[:2]]
    count = 0 if not any(widths[:1]) else 1 + widths[1:].count(True)
    if count:
        rest = args[count:]
        return block.after_width(rest) if hasattr(block, "after_width") else rest
    if args and type(args[0]) is int and args[0] > MOST_SETTING:
        found = ", ".join(map(str, dict.fromkeys(context.in_channels)))
        raise UserError(
            f"{name} keeps the channels of its input, which has {found}; {args[0]} x width_multiple"
            f" {context.width:g} are others"
        )
    return args


def _named(value: Any, names: dict[str, Any]) -> Any:
    """Return what a word such as `None`, `nc` or `anchors` stands for; else the value itself."""
    if value == "anchors" and names["anchors"] is None:
        raise UserError("'anchors' is missing; the top of the YAML gives them to the head")
    return names.get(value, value) if isinstance(value, str) else value


def run_once(module: nn.Module, x: Any) -> Any:
    """Return a new module's output in eval mode, where no statistics change."""
    result = module.eval()(x)
    module.train()
    return result


def _short(row: Any) -> str:
    """Format a row as its YAML shows it, cut at 80 characters."""
    text = str(row)
    if isinstance(row, list):
        items = (_short(item) if isinstance(item, list) else str(item) for item in row)
        text = f"[{', '.join(items)}]"
    return text if len(text) <= 80 else text[:77] + "..."

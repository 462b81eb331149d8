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

from models.bounds import BUILD_ERRORS, MOST_LAYERS, BoundedTensors
from models.keys import CHANNELS, check_keys
from models.registry import BLOCKS, BuildContext
from utils.errors import UserError, brief, suggest

TRACE_SIZE = 128  # px; a multiple of every usual stride, and small enough to run in milliseconds
OTHER_HEADS = {
    "IAuxDetect": "it needs auxiliary levels in the loss; IDetect on the first half of its levels"
    " is the deployed model",
    "IBin": "its sizes are classes of intervals, which no loss here knows; use IDetect",
    "Segment": "it makes masks, and this is a detector; use Detect",
}
"""Heads of YOLOv5 and YOLOv7 whose likeness in name to ours says nothing."""
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
    layers: int = 0
    """Number of rows, each counted as often as it is repeated."""
    max_stride: int = 1
    """Largest stride of a map that is read, in pixels: sides of images are multiples of it."""


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
    with torch.no_grad(), BoundedTensors():
        image = torch.zeros(1, CHANNELS, TRACE_SIZE, TRACE_SIZE)
        for section in ("backbone", "head"):
            for number, row in enumerate(cfg[section]):
                place = f"{where}: {section} row {number} {_short(row)}"
                try:
                    _add_row(rows, row, image)
                except UserError as error:
                    raise UserError(f"{place}: {error}") from error
                except BUILD_ERRORS as error:
                    reason = (str(error) or type(error).__name__).splitlines()[0][:300]
                    raise UserError(
                        f"{place}: this block cannot be built with these arguments and inputs:"
                        f" {reason}"
                    ) from error
        rows.max_stride = _max_stride(rows)
    return rows


def _max_stride(rows: ParsedRows) -> int:
    """Return the largest stride of a map that a row reads or the head predicts on, in pixels.

    A neck may read maps that are deeper than those of the head. A map of one cell is either of the
    stride `TRACE_SIZE`, or pooled whatever the image's size: a longer image tells which.
    """
    read = {i for spec in rows.specs for i in spec.source if i >= 0}
    sides = {i: _side(rows.outputs[i]) for i in read}
    strides = [math.ceil(TRACE_SIZE / side) for side in sides.values() if side > 1]
    if 1 in sides.values():
        longer = _run_again(rows, torch.zeros(1, CHANNELS, TRACE_SIZE, 2 * TRACE_SIZE))
        single = [i for i, side in sides.items() if side == 1]
        strides += [TRACE_SIZE for i in single if longer[i].shape[3] == 2]
    return max(strides, default=1)


def _side(output: Tensor | None) -> int:
    """Return the height of a map; 0 for what is no map."""
    return output.shape[2] if isinstance(output, Tensor) and output.dim() == 4 else 0


def _run_again(rows: ParsedRows, image: Tensor) -> dict[int, Any]:
    """Return the outputs of all rows but the last for another image, by their index."""
    outputs: dict[int, Any] = {-1: image}
    for spec in rows.specs[:-1]:
        inputs = [outputs[i] for i in spec.source]
        result = run_once(rows.modules[spec.index], inputs if spec.listed else inputs[0])
        several = [result] if spec.outputs == 1 else result
        outputs |= {spec.index + i: output for i, output in enumerate(several)}
    return outputs


def _add_row(rows: ParsedRows, row: Any, image: Tensor) -> None:
    """Build one row, run it on the zero image, and append it to the rows built so far."""
    source_item, repeats, name, args, tag = _fields(row)
    index = len(rows.outputs)
    source = _source(source_item, index, rows.tags)
    inputs = [image if i < 0 else _output(rows, i) for i in source]
    listed = isinstance(source_item, list)
    x: Any = inputs if listed else inputs[0]
    if name in OTHER_HEADS and name not in BLOCKS:
        raise UserError(f"{name} is not built here: {OTHER_HEADS[name]}")
    block, context = BLOCKS[name], _context(rows.cfg, inputs, repeats)
    rows.layers += context.repeats
    if rows.layers > MOST_LAYERS:
        raise UserError(f"the rows up to here, with their repeats, are more than {MOST_LAYERS}")
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
        raise UserError(f"repeats is {brief(repeats)}; expected a number from 1 to {MAX_REPEATS}")
    if not isinstance(name, str):
        raise UserError(f"the block is {brief(name)}; expected a name")
    if not isinstance(args, list | dict):
        raise UserError(f"args is {brief(args)}; expected a list or a mapping")
    if tag is not None and not isinstance(tag, str):
        raise UserError(f"the tag is {brief(tag)}; expected a name")
    return source, repeats, name, args, tag


def _source(item: Any, index: int, tags: dict[str, int]) -> tuple[int, ...]:
    """Return the output indices that `from` means; `index` is the row's own.

    `item` is an int (a negative one counts back from this row), a tag, or a list of them.
    """
    found = []
    for one in item if isinstance(item, list) else [item]:
        if isinstance(one, str):
            if one not in tags:
                raise UserError(f"from: no row above has the tag {brief(one)}{suggest(one, tags)}")
            found.append(tags[one])
            continue
        absolute = one + index if type(one) is int and one < 0 else one
        first = -1 if index == 0 else 0  # only the first row reads the image
        if type(absolute) is not int or not first <= absolute < index:
            raise UserError(f"from: {brief(one)} is no row above this one (model.{index})")
        found.append(absolute)
    if not found:
        raise UserError("from: names no input")
    return tuple(found)


def _context(cfg: dict[str, Any], inputs: list[Any], repeats: int) -> BuildContext:
    """Return the context of a row that reads `inputs`; `repeats` is not yet scaled by depth."""
    depth = cfg.get("depth_multiple", 1.0)
    scaled = max(round(repeats * depth), 1) if repeats > 1 else 1
    if scaled > MAX_REPEATS:
        raise UserError(
            f"{repeats} repeats x depth_multiple {depth:g} are {scaled}; expected 1 to"
            f" {MAX_REPEATS}"
        )
    return BuildContext(
        in_channels=tuple(x.shape[1] for x in inputs),
        in_strides=tuple(TRACE_SIZE / x.shape[2] for x in inputs),
        nc=cfg["nc"],
        anchors=cfg.get("anchors"),
        width=cfg.get("width_multiple", 1.0),
        act=cfg.get("activation") or "SiLU",
        repeats=scaled,
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


def _short(row: Any, depth: int = 3) -> str:
    """Format a row as its YAML shows it, cut at 80 characters and `depth` nested lists."""
    text = row[:80] if isinstance(row, str) else brief(row)
    if isinstance(row, list) and depth:
        text = f"[{', '.join(_short(item, depth - 1) for item in row[:20])}]"
    return text if len(text) <= 80 else text[:77] + "..."

"""Check what a checkpoint of ours holds, once, before any of it is used.

The file may be damaged, edited or hostile: nested without end, one list shared a million times, a
tensor of one byte that claims a terabyte through strides of zero.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.lineage import check_ancestors
from utils.errors import UserError, brief
from utils.yaml_files import is_text

MOST_DEPTH = 50
MOST_VALUES = 2_000_000  # shared ones count as often as they are met
SHARED_TWICE = 4  # how many times the bytes of the file all tensors may view together
SMALL = 2**20  # bytes that any file may view
DICTS, LISTS, NUMBERS = (dict, OrderedDict), (list, tuple), (int, float)
PLAIN = (bool, int, float, str, bytes, type(None))

FIELDS: dict[str, tuple[type, ...]] = {
    "model_cfg": DICTS,
    "structure": DICTS,
    "ancestors": LISTS,
    "state_dict": DICTS,
    "names": LISTS,
    "stride": LISTS,
    "anchors": (*LISTS, type(None)),
    "hyp": DICTS,
    "args": DICTS,
    "epoch": (int,),
    "best_fitness": NUMBERS,
    "history": LISTS,
    "train_state": DICTS,
}
"""Types of the fields; a head may store more of its own."""


def check_checkpoint(content: Mapping[str, Any], file_bytes: int) -> None:
    """Check the values of a checkpoint that was read as plain data and tensors.

    Args:
        content: The mapping, whose required keys are there.
        file_bytes: Size of its file.

    Raises:
        UserError: Says which field is wrong and what would be right; the file is for the caller to
            name.
    """
    _check_sizes(content, file_bytes)
    for key, kinds in FIELDS.items():
        if key in content and type(content[key]) not in kinds:
            raise _wrong(key, content[key], f"a {kinds[0].__name__}")
    for name, tensor in content["state_dict"].items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise _wrong("state_dict", name, "a tensor by its name")
    _check_structure(content["structure"], content["state_dict"])
    _check_lists(content)
    if wrong := check_ancestors(content.get("ancestors", ())):
        raise _wrong("ancestors", wrong, "channels by the name of a module")
    for place in ("model_cfg", "hyp", "args"):
        if odd := [key for key in content.get(place, ()) if type(key) is not str]:
            raise _wrong(place, odd[0], "a key that is a word")


def _check_lists(content: Mapping[str, Any]) -> None:
    """Check the names, the strides, the anchors and the history."""
    names = content["names"]
    if not names or not all(type(name) in (str, int) for name in names):
        raise _wrong("names", names, "a list of names")
    if not all(type(stride) in NUMBERS and stride > 0 for stride in content["stride"]):
        raise _wrong("stride", content["stride"], "numbers above 0")
    for level in content["anchors"] or ():
        if type(level) not in LISTS or not all(type(value) in NUMBERS for value in level):
            raise _wrong("anchors", level, "widths and heights of a level")
    for row in content.get("history", ()):
        if type(row) not in DICTS or not all(type(value) in NUMBERS for value in row.values()):
            raise _wrong("history", row, "numbers by their names")


def _check_structure(structure: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Check that the widths of each module are numbers, and its shapes those of the weights."""
    for module, widths in structure.items():
        shapes = widths.get("shapes") if isinstance(widths, dict) else None
        if type(module) is not str or not isinstance(shapes, dict):
            raise _wrong("structure", module, "widths and shapes by the name of a module")
        for name, shape in shapes.items():
            tensor = state.get(f"{module}.{name}" if module else str(name))
            if tensor is None or type(shape) not in LISTS or list(tensor.shape) != list(shape):
                raise _wrong(f"structure: {module}.{name}", shape, "the shape of its weights")
        for name, value in widths.items():
            numbers = value if type(value) in LISTS else [value]
            if name != "shapes" and not all(type(number) in (*NUMBERS, bool) for number in numbers):
                raise _wrong(f"structure: {module}.{name}", value, "a width")


def _check_sizes(content: Any, file_bytes: int) -> None:
    """Walk over everything once and bound depth, number of values and bytes of tensors."""
    budget = SHARED_TWICE * file_bytes + SMALL
    for number, value in enumerate(_values(content)):
        if number > MOST_VALUES:
            raise UserError(f"damaged: more than {MOST_VALUES} values")
        if isinstance(value, Tensor):
            budget -= _viewed_bytes(value)
            if budget < 0:
                raise UserError("damaged: its tensors claim to be larger than the file")
        elif type(value) not in (*PLAIN, *DICTS, *LISTS, set, torch.Size):
            raise UserError(f"holds a {type(value).__name__}, which is no plain value")
        elif type(value) is int and abs(value) >= 2**63:
            raise UserError("damaged: holds a number of more than 64 bits")
        elif type(value) is str and not is_text(value):
            raise UserError("damaged: a NUL or half a surrogate pair in a text")


def _values(content: Any) -> Iterator[Any]:
    """Yield a value and everything inside it, without recursion.

    Raises:
        UserError: Nested deeper than any checkpoint is.
    """
    waiting = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        yield value
        inside: list[Any] = []
        if isinstance(value, dict):
            inside = [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            inside = list(value)
        if inside and depth >= MOST_DEPTH:
            raise UserError(f"damaged: nested deeper than {MOST_DEPTH} levels")
        waiting += [(item, depth + 1) for item in inside]


def _viewed_bytes(tensor: Tensor) -> int:
    """Return the bytes that a copy of the tensor would take.

    Raises:
        UserError: The tensor is sparse, quantised or without data, or its strides repeat values.
    """
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.is_quantized or tensor.device.type == "meta":
        raise UserError("holds a tensor that is sparse, quantised or without data")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise UserError("damaged: a tensor claims to be larger than its data")
    return size


def _wrong(place: str, value: Any, wanted: str) -> UserError:
    """Return the error about one value."""
    return UserError(f"damaged or edited: {place}: {brief(value)} is not {wanted}")

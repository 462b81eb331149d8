"""Check options stored in a file, which someone may have edited. Standard library only."""

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin

from utils.errors import UserError, brief
from utils.options.parsing.parser import base_type
from utils.options.parsing.ranges import check_values


def options_from(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Return an options dataclass from stored values by name; lists become tuples.

    Args:
        kind: Class of the options.
        values: Values by the names of its fields.
        where: File, named in errors.

    Raises:
        UserError: A value is of another type than its option, or out of its range.
    """
    found = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    for item in dataclasses.fields(kind):
        if item.name in found and not _fits(found[item.name], item):
            raise UserError(
                f"{where}: {item.name}: {brief(values[item.name])} is no value of this option;"
                f" {_wanted(item)} would be right"
            )
    options = kind(**found)
    try:
        check_values(options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return options


def _fits(value: Any, item: dataclasses.Field) -> bool:
    """Return whether a stored value has the type of an option."""
    kind = base_type(item)
    kinds = (int, float) if kind is float else (kind,)
    if _is_tuple(item):
        return isinstance(value, tuple) and all(type(member) in kinds for member in value)
    return type(value) in kinds or (value is None and NoneType in get_args(item.type))


def _is_tuple(item: dataclasses.Field) -> bool:
    """Return whether an option takes several values."""
    return get_origin(item.type) is tuple


def _wanted(item: dataclasses.Field) -> str:
    """Return what an option takes, in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    word = names[base_type(item)]
    return f"a list of such: {word}" if _is_tuple(item) else word

"""Command-line options: one dataclass per script."""

from utils.options.base import (
    Options,
    RunOptions,
    changed_options,
    command_line,
    option,
    parse_options,
    to_dict,
)

__all__ = [
    "Options",
    "RunOptions",
    "changed_options",
    "command_line",
    "option",
    "parse_options",
    "to_dict",
]

"""Command-line options, a dataclass a script."""

from utils.options.base import (
    RunOptions,
    changed_options,
    command_line,
    option,
    parse_options,
    to_dict,
)

__all__ = ["RunOptions", "changed_options", "command_line", "option", "parse_options", "to_dict"]

"""The options of a script as a frozen dataclass: one declaration gives parser, help and `opt.yaml`.

Standard library only, so that `--help` answers before torch is imported. Every option is accepted
with dashes or underscores.
"""

import dataclasses
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from utils.errors import UserError
from utils.log import LOGGER
from utils.options.meta import MOST_WORKERS, Meta
from utils.options.parsing.parser import build_parser, dashed
from utils.options.parsing.ranges import check_values

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


def option(default: Any, text: str, *aliases: str, **meta: "Unpack[Meta]") -> Any:
    """Declare one option of an options dataclass.

    Args:
        default: value of the option where the command line does not give one.
        text: help text.
        aliases: further spellings without dashes (`batch`).
        meta: group in the help, form of the values and range; see `utils.options.meta.Meta`.
    """
    return field(default=default, metadata={"help": text, "aliases": aliases, **meta})


def parse_options(kind: type[T], argv: Sequence[str] | None = None, description: str = "") -> T:
    """Parse a command line into the dataclass `kind`; `argv` None stands for `sys.argv[1:]`.

    Raises:
        SystemExit: exit code 2 and one line for an unknown option or an unreadable value.
        UserError: a value out of its range.
    """
    given = sys.argv[1:] if argv is None else argv
    for word in given:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(f"{word!a}: is not UTF-8; rename the file or folder")
    parser = build_parser(kind, description)
    values = vars(parser.parse_args([dashed(word) for word in given]))
    found = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    options = kind(**found)
    check_values(options)
    return options


def to_dict(options: Any) -> dict[str, Any]:
    """Return the values of an options dataclass by name, tuples as lists, as YAML can hold them."""
    values = dataclasses.asdict(options)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def recorded(options: Any) -> dict[str, Any]:
    """Return the values as `to_dict`, with absolute paths: they hold in every directory.

    A name that is no existing file (`demo`) stays as it is.
    """
    values = to_dict(options)
    for item in dataclasses.fields(options):
        value = values[item.name]
        if item.metadata.get("path") and value and Path(value).is_file():
            values[item.name] = str(Path(value).absolute())
    return values


def with_moves(old: T, given: Any, movable: Collection[str] = ("data", "teacher")) -> T:
    """Return the options of a run that is resumed on another device or after files have moved.

    Args:
        old: Options that the run began with.
        given: Options of the command that resumes it.
        movable: Options that the command may replace, beside the device.
    """
    new = {name: value for name in ("device", *movable) if (value := getattr(given, name, ""))}
    for name in movable:
        if name in new and new[name] != (before := getattr(old, name)):
            LOGGER.info(f"--{name}: {new[name]} in place of {before}")
    return dataclasses.replace(old, **new)  # type: ignore[type-var]


def changed_options(
    options: Any, besides: Collection[str] = (), among: Collection[str] = ()
) -> list[str]:
    """Return `--name` of every option that is not at its default.

    Args:
        options: The options.
        besides: Names that are left out.
        among: Names that are looked at; empty for all.
    """
    items = [f for f in dataclasses.fields(options) if f.init and f.name not in besides]
    items = [f for f in items if not among or f.name in among]
    return [f"--{f.name.replace('_', '-')}" for f in items if getattr(options, f.name) != f.default]


def command_line() -> str:
    """Return the command of this process, quoted so that a shell takes it again."""
    return shlex.join(["python", *sys.argv])


@dataclass(frozen=True)
class Options:
    """Base of the options of every script."""

    def check(self) -> None:
        """Raise `UserError` where a value is out of its range, or not among its choices."""
        check_values(self)


@dataclass(frozen=True)
class RunOptions(Options):
    """Options of every script that makes a run folder."""

    device: str = option(
        "",
        "cpu, 0, 0,1 or empty for the first GPU if there is one, else the CPU",
        group="run",
    )
    workers: int = option(
        2,
        "data loading processes per rank; changes nothing but the speed",
        group="run",
        least=0,
        most=MOST_WORKERS,
    )
    worker_timeout: float = option(
        600.0,
        "seconds without a batch after which data workers count as hung and the run ends; a"
        " warning comes after a minute; 0: wait for ever",
        group="run",
        least=0,
        most=1e6,
    )
    project: str = option("runs", "folder of the runs", group="run")
    name: str = option("exp", "name of this run; exp2, exp3 ... where it exists", group="run")
    exist_ok: bool = option(False, "write into the run folder even if it exists", group="run")
    seed: int = option(
        0, "random seed of initialisation, data order and augmentation", group="run", least=0
    )
